"""Acting by the newest policies there are, in asynchronous training: a worker's own copies of them, or an inference role that follows.

Nobody says beforehand which versions come. A worker asks before each fragment and acts by what was newest then until it asks again, so
that a fragment is of one version of each interface; evaluations are of pinned versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from marl_hpc.actors import PolicyNetwork
from marl_hpc.config import Inference as InferenceConfig
from marl_hpc.metrics import Clock
from marl_hpc.roles.acting import Acting, OwnPolicies
from marl_hpc.roles.clients import AskingClient, Stopping
from marl_hpc.roles.inference import InferenceServer, Version
from marl_hpc.roles.servers import ParameterServers

ASKS = "newer ones"  # what a worker acts by that waits for an answer


class Turned(NamedTuple):
    """What a worker acts by from now on."""

    versions: dict[str, int]  # of each interface
    status: dict[str, Any]  # where training stands


class Following(Acting, Protocol):
    def newest(self) -> Turned:
        """Act by the newest policies."""
        ...

    def turn_to_pin(self, pin: str) -> None:
        """Act by pinned ones, until `newest`."""
        ...


class OwnNewest(OwnPolicies):
    """Policies in this process; see `Following`."""

    def __init__(
        self, policies: Mapping[str, PolicyNetwork], members: Mapping[str, tuple[str, ...]], parameters: ParameterServers
    ) -> None:
        """`members` are the policies of each interface, in the order of its vector."""
        super().__init__(policies)
        self.members, self.parameters = members, parameters
        self.versions: dict[str, int] = {}

    def newest(self) -> Turned:
        found = self.parameters.newest(self.versions)
        self.load(split(found.policies, self.members, self.policies))
        self.versions = {**self.versions, **found.versions}
        return Turned(self.versions, found.status)

    def turn_to_pin(self, pin: str) -> None:
        found, _ = self.parameters.pinned(pin)
        self.load(split(found, self.members, self.policies))
        self.versions = {}  # other policies are here now


def split(
    vectors: Mapping[str, Tensor], members: Mapping[str, tuple[str, ...]], policies: Mapping[str, PolicyNetwork]
) -> dict[str, Tensor]:
    """Each policy's flat parameters, from the interfaces' vectors [P]."""
    found = {}
    for interface, vector in vectors.items():
        names = members[interface]
        found |= dict(
            zip(names, vector.split([sum(p.numel() for p in policies[name].parameters()) for name in names]), strict=True)
        )
    return found


class FollowingServer(InferenceServer):
    """An inference role that follows; all who ask at the same time get the same versions."""

    handlers = ("newest", "turn_to_pin", "act", "describe")

    def __init__(
        self, index: int, policies: dict[str, PolicyNetwork], members: Mapping[str, tuple[str, ...]], parameters: ParameterServers,
        workers: int, config: InferenceConfig, clock: Clock, *, alone: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(index, policies, workers, config, clock, alone=alone)
        self.members, self.parameters = members, parameters
        self.asked: dict[int, str | None] = {}  # worker -> the pin that it wants, None: the newest
        self.said: dict[int, dict[str, Any]] = {}  # worker -> what it was told last
        self.number = 0  # of the newest set of policies
        self.current: dict[str, PolicyNetwork] = {}
        self.held: dict[str, int] = {}  # its versions

    def newest(self, worker: int) -> Any:
        """The worker acts by what is newest now: {"version": what it calls it, "versions", "status"}."""
        return self.turn_to_pin(worker, None)

    def turn_to_pin(self, worker: int, pin: str | None) -> Any:
        with self.parking.lock:
            self.now_uses(worker, ASKS)
            self.asked[worker] = pin
            self.said.pop(worker, None)
            reply = self.parking.answer(lambda: self.said.get(worker))
        self.notify()
        return reply

    def update(self) -> None:
        with self.parking.lock:
            asked = dict(self.asked) if self.parking.closed is None else {}
            pins = {pin for pin in asked.values() if pin is not None} - self.versions.keys()
        status: dict[str, Any] = {}
        loaded: dict[Version, dict[str, PolicyNetwork]] = {}
        try:
            if None in asked.values():
                found = self.parameters.newest(self.held)
                status = found.status
                if found.policies:
                    self.current |= self.load(split(found.policies, self.members, self.policies))
                    self.held |= found.versions
                    self.number += 1
                loaded[self.number] = dict(self.current)
            for pin in pins:
                loaded[pin] = self.load(split(self.parameters.pinned(pin)[0], self.members, self.policies))
        except Stopping:
            return  # this role is closed, too, or will be
        with self.parking.lock:
            self.versions |= loaded
            for worker, pin in asked.items():
                if self.asked.get(worker, ASKS) == pin:
                    del self.asked[worker]
                    self.used[worker] = self.number if pin is None else pin
                    self.said[worker] = {"version": self.used[worker], "versions": dict(self.held), "status": status}
            self.versions = {version: held for version, held in self.versions.items() if version in self.used.values()}
            self.parking.settle()


class FollowingClient(AskingClient):
    """Such a role as what a worker acts by; see `Following`."""

    def newest(self) -> Turned:
        answer = self._call("the newest policies", "newest", self.worker)
        self.version = answer["version"]
        return Turned(answer["versions"], answer["status"])

    def turn_to_pin(self, pin: str) -> None:
        self.version = self._call("pinned policies", "turn_to_pin", self.worker, pin)["version"]
