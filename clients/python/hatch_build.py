"""Builds the code for the agent's messages from its contract, when the package is built.

Messages are made at import from the compiled contract, in a descriptor pool of their own: a program may have code
that it generated from another version of the same contract, and the protobuf runtime may be of any version from the
floor on.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "election_agent/v1/election_agent.proto"
MODULE = '''"""Generated from election_agent.proto when the package was built."""

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper

DESCRIPTOR = descriptor_pool.DescriptorPool().AddSerializedFile(
    {compiled!r}
)

for _name, _descriptor in DESCRIPTOR.message_types_by_name.items():
    _class = message_factory.GetMessageClass(_descriptor)
    for _nested in _descriptor.enum_types:
        # Not all implementations of protobuf make it an attribute of a class that is made so.
        if not hasattr(_class, _nested.name):
            setattr(_class, _nested.name, enum_type_wrapper.EnumTypeWrapper(_nested))
    globals()[_name] = _class
'''


def find(root: pathlib.Path) -> pathlib.Path:
    """The directory of the contract: beside this file in a source distribution, above it in the repository."""
    for directory in (root / "proto", root.parent.parent / "proto"):
        if (directory / NAME).is_file():
            return directory
    raise FileNotFoundError(f"there is no {NAME} in {root / 'proto'} or {root.parent.parent / 'proto'}")


def generate(root: pathlib.Path) -> pathlib.Path:
    """Writes the module and its types. Returns where the contract is."""
    contract = find(root)
    target = root / "src/election_agent_client/_proto"
    with tempfile.TemporaryDirectory() as temporary:
        compiled = pathlib.Path(temporary, "compiled")
        protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={contract}"]
        subprocess.run([*protoc, f"--descriptor_set_out={compiled}", f"--pyi_out={temporary}", NAME], check=True)
        # The set's only file: its field 1.
        from google.protobuf import descriptor_pb2

        files = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes()).file
        types = pathlib.Path(temporary, NAME).with_name("election_agent_pb2.pyi").read_text()
        types = f'# mypy: disable-error-code="type-arg,no-untyped-def"\n{types}'
        module = MODULE.format(compiled=files[0].SerializeToString(deterministic=True))
    for name, text in (("election_agent_pb2.py", module), ("election_agent_pb2.pyi", types)):
        path = target / name
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
    return contract


class ProtoHook(BuildHookInterface[Any]):
    """Called by hatchling before it collects files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        contract = generate(pathlib.Path(self.root))
        if self.target_name == "sdist":
            build_data["force_include"][str(contract / NAME)] = f"proto/{NAME}"


if __name__ == "__main__":
    generate(pathlib.Path(__file__).resolve().parent)
