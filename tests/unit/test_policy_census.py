"""Who has which address, among pods that claim the same ones."""

from __future__ import annotations

import ipaddress
import random

import pytest

from pycni.model.kube import Meta, Pod
from pycni.view.policy_pods import Census, packed

ADDRESSES = ("10.0.0.1", "10.0.0.2", "fd00::1")


def pod(name: str, created: int, *ips: str, deleting: bool = False) -> Pod:
    return Pod(
        meta=Meta(name=name, namespace="a", created=created, deleting=deleting), ips=ips, phase="Running"
    )


def fresh(pods: dict[str, Pod]) -> Census:
    made = Census("n1")
    for key, item in pods.items():
        made.put(key, item)
    return made


def holder(census: Census, address: bytes) -> str | None:
    found = census.claimant(address)
    return None if found is None else found.key


@pytest.mark.parametrize("seed", range(20))
def test_claims_do_not_depend_on_what_was_before(seed):
    chance, census, pods = random.Random(seed), Census("n1"), dict[str, Pod]()
    for _ in range(60):
        name = chance.choice("pqrs")
        if chance.random() < 0.3:
            pods.pop(f"a/{name}", None)
        else:
            ips = chance.sample(ADDRESSES, chance.randint(0, 3))
            pods[f"a/{name}"] = pod(name, chance.randint(1, 3), *ips, deleting=chance.random() < 0.3)
        census.put(f"a/{name}", pods.get(f"a/{name}"))
        again = fresh(pods)
        for address in packed(ADDRESSES):
            assert holder(census, address) == holder(again, address)
            assert sorted(census.claimants(address)) == sorted(again.claimants(address))


def test_the_youngest_that_stays_has_the_address():
    census = fresh({"a/p": pod("p", 1, "10.0.0.1"), "a/q": pod("q", 3, "10.0.0.1", deleting=True)})
    (address,) = packed(["10.0.0.1"])
    assert census.claimant(address).key == "a/p"
    census.put("a/r", pod("r", 2, "10.0.0.1"))
    assert census.claimant(address).key == "a/r"
    census.put("a/r", None)
    census.put("a/p", None)
    assert census.claimants(address) == ("a/q",)
    assert census.put("a/q", None) == {address}
    assert census.claimant(address) is None


@pytest.mark.parametrize(
    "text",
    ["::", "::1", "1::", "fd00:1::5", "1:2:3:4:5:6:7:8", "1:0:3::8", "::102:304", "::1.2.3.4", "10.1.2.3"],
)
def test_addresses_are_packed_as_the_standard_library_does(text):
    assert packed([text, text]) == (ipaddress.ip_address(text).packed,)
