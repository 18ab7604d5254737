"""What is traced in most labs: a pod behind a Service, and one that a policy shuts."""

AROUND = """
apiVersion: v1
kind: Pod
metadata: {name: shut, labels: {app: shut}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: shut}}, policyTypes: [Ingress]}
---
"""

SHOP = f"""
apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec: {{nodeName: node2, containers: [{{name: c, ports: [{{containerPort: 8080}}]}}]}}
---
{AROUND.lstrip()}"""
