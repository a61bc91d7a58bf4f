"""Method: docs/openapi.json is held against a live server with the standard library alone: every
operation is called, with the document's own examples or without a body, and each answer must have a
documented status, media type and schema. (`make test-openapi` lets schemathesis do the same with
thousands of calls.)"""

import http.client
import json
import pathlib
import re
import sys
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest
from octavo_testing import DENSE, ROOT

DOCUMENT = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def resolve(node):
    while "$ref" in node:
        path = node["$ref"].lstrip("#/").split("/")
        node = DOCUMENT
        for step in path:
            node = node[step]
    return node


def is_type(value, name):
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def mismatch(value, schema, where="reply"):
    """Why `value` is not of `schema`, in the words of JSON Schema that the document uses; None when
    it is."""
    schema = resolve(schema)
    if "anyOf" in schema:
        reasons = [mismatch(value, s, where) for s in schema["anyOf"]]
        return None if None in reasons else f"{where}: none of: {'; '.join(reasons)}"
    if "const" in schema and value != schema["const"]:
        return f"{where}: expected {schema['const']!r}, got {value!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where}: expected one of {schema['enum']}, got {value!r}"
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not any(is_type(value, name) for name in names):
        return f"{where}: expected {names}, got {str(value)[:80]!r}"
    children = []
    if isinstance(value, dict):
        missing = set(schema.get("required", ())) - set(value)
        if missing:
            return f"{where}: lacks {sorted(missing)}"
        properties = schema.get("properties", {})
        for key, child in value.items():
            children.append((child, properties.get(key, schema.get("additionalProperties", {})),
                             f"{where}.{key}"))
    elif isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return f"{where}: {len(value)} entries"
        for i, child in enumerate(value):
            children.append((child, prefix[i] if i < len(prefix) else schema.get("items", {}),
                             f"{where}[{i}]"))
    return next((m for m in (mismatch(*c) for c in children) if m is not None), None)


class Checker(ApiTest):
    def test_the_checker_sees_what_is_wrong(self):
        entry = {"$ref": "#/components/schemas/LogprobEntry"}
        self.assertIsNone(mismatch([None, 5, "a"], entry))
        for wrong in ([None, 5], [None, "5", None], [True, 5, None], {"a": 1}):
            self.assertIsNotNone(mismatch(wrong, entry), wrong)
        error = {"$ref": "#/components/schemas/ValueError"}
        self.assertIsNone(mismatch({"error": {"message": "x"}}, error))
        self.assertIn("lacks ['message']", mismatch({"error": {}}, error))


class Operations(ApiTest):
    """Every operation of the document, in an order that leaves the server as it was."""

    def send(self, method, path, body=None, content_type="application/json"):
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
        self.addCleanup(connection.close)
        headers = {"Content-Type": content_type} if body is not None else {}
        connection.request(method.upper(), path, body=body, headers=headers)
        reply = connection.getresponse()
        return reply, reply.read()

    def check(self, name, operation, reply, data):
        """The answer against the operation; returns its status."""
        self.assertIn(str(reply.status), operation["responses"], f"{name}: {data[:300]}")
        documented = resolve(operation["responses"][str(reply.status)])
        contents = documented.get("content")
        if contents is None:
            self.assertEqual(data, b"", name)
            return reply.status
        kind = reply.getheader("Content-Type", "").split(";")[0]
        self.assertIn(kind, contents, name)
        if kind == "application/json":
            self.assertIsNone(mismatch(json.loads(data), contents[kind]["schema"]), name)
        return reply.status

    def bodies(self, operation):
        """(bytes, media type) to send: the examples, and an empty object for optional bodies."""
        if "requestBody" not in operation:
            return [(None, None)]
        (kind, media), = resolve(operation["requestBody"])["content"].items()
        examples = [e["value"] for e in media.get("examples", {}).values()]
        if kind != "application/json":
            return [(b"", kind)]
        return [(json.dumps(e).encode(), kind) for e in examples] or [(b"{}", kind)]

    def url(self, path, operation):
        path = path.replace("{id}", DENSE)
        query = {p["name"]: p["schema"].get("enum", ["0"])[0]
                 for p in operation.get("parameters", ()) if p["in"] == "query" and p["required"]}
        return path + ("?" + urllib.parse.urlencode(query) if query else "")

    def resume(self):
        """Released weights are lost: an update brings them, and only one is open at a time."""
        self.post("/octavo/v1/update/abort",
                  {"update_id": self.get("/octavo/v1/update")[1].get("update_id", "none")})
        for path, body in (("/resume_memory_occupation", {}), ("/continue_generation", {}),
                           ("/update_weights_from_disk", {"model_path": DENSE})):
            status, reply = self.post(path, body)
            self.assertEqual(status, 200, f"{path}: {reply}")

    def test_every_operation_answers_as_documented(self):
        good = set()
        for path, operations in DOCUMENT["paths"].items():
            for method, operation in operations.items():
                for body, kind in self.bodies(operation):
                    name = f"{method} {path} {body}"
                    with self.subTest(name):
                        reply, data = self.send(method, self.url(path, operation), body, kind)
                        if self.check(name, operation, reply, data) == 200:
                            good.add((method, path))
                if re.search("pause|release", path):
                    self.resume()
        self.assertGreater(len(good), 30)
        for operation in (("post", "/generate"), ("put", "/generate"), ("post", "/v1/completions"),
                          ("post", "/v1/chat/completions"), ("post", "/tokenize")):
            self.assertIn(operation, good)

    def test_malformed_bodies_are_answered_as_documented(self):
        for path, operations in DOCUMENT["paths"].items():
            for method, operation in operations.items():
                if "application/json" not in resolve(operation.get("requestBody", {})).get(
                        "content", {}):
                    continue
                for body in (b"{", b"[]", b"\xff", b'{"a":'):
                    with self.subTest(f"{method} {path} {body}"):
                        reply, data = self.send(method, self.url(path, operation), body)
                        self.assertEqual(self.check(path, operation, reply, data), 400)

    def test_other_methods_are_405_with_those_that_are_allowed(self):
        for path, operations in DOCUMENT["paths"].items():
            for method in ("get", "post", "put", "delete", "patch"):
                if method not in operations:
                    with self.subTest(f"{method} {path}"):
                        reply, data = self.send(method, self.url(path, {}))
                        self.assertEqual(reply.status, 405)
                        self.assertEqual(json.loads(data), {"detail": "Method Not Allowed"})
                        allowed = {m.lower() for m in reply.getheader("Allow").split(", ")}
                        self.assertEqual(allowed, set(operations))


if __name__ == "__main__":
    octavo_testing.main()
