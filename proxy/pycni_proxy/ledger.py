"""The ledger of tables, under the name it has for services; it lives with the core, as policies keep tables too."""

from pycni.reconcile.ledger import Ledger

__all__ = ["Ledger"]
