"""An inference role: acts for rollout workers, so that they hold no policies and many of them share one forward pass, on a GPU say.

Workers say which version of the policies they want; it is pulled from the parameter shards when the first asks for it, and kept as long
as anybody acts by it. Questions that can be answered together (the same version and exploration) are gathered until there are enough,
the first has waited long enough, or nobody is left who could still ask. Nothing is known here of episodes. Who shares a forward pass
depends on who asks when, so that what several workers get is the same to rounding only.

Handlers park their callers; the role's own thread, which calls `step`, does the work.
"""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from marl_hpc.actors import PolicyNetwork
from marl_hpc.comm.peers import Parking, Pending
from marl_hpc.config import Inference as InferenceConfig
from marl_hpc.metrics import Clock
from marl_hpc.networks import load_flat
from marl_hpc.roles.acting import Answer, Question, answer
from marl_hpc.roles.clients import ParameterClient, Stopping

Version = int | str


@dataclass
class Call:
    """One worker's questions, parked until they are answered."""

    worker: int
    version: Version
    questions: dict[str, Question]
    since: float
    answers: dict[str, tuple[Any, ...]] | None = None

    @property
    def kind(self) -> tuple[Any, ...]:
        """What calls of one forward pass have in common."""
        return (self.version, *((name, q.epsilon, q.noise is None) for name, q in sorted(self.questions.items())))

    @property
    def observations(self) -> int:
        return sum(fields["active"].numel() for question in self.questions.values() for fields in question.inputs.values())


@dataclass
class Pull:
    """A version on its way here."""

    calls: list[Pending]
    missing: set[str]  # shards that haven't given theirs
    since: float


class InferenceServer:
    """What does not depend on where versions come from."""

    handlers: tuple[str, ...]

    def __init__(
        self,
        index: int,
        policies: dict[str, PolicyNetwork],
        workers: int,
        config: InferenceConfig,
        clock: Clock,
        *,
        alone: bool = False,
    ) -> None:
        """`policies` are on the device that is to compute; so many `workers` ask this role. `alone`: in a world of one process nobody
        calls `step` and nobody else could ask meanwhile, so each call is answered at once."""
        self.index, self.policies, self.workers = index, policies, workers
        self.max_batch, self.max_wait_s, self.clock = config.max_batch, 0.0 if alone else config.max_wait_ms / 1000, clock
        self.alone = alone
        self.parking = Parking()
        self.news = threading.Event()
        self.calls: list[Call] = []
        self.used: dict[int, Version] = {}  # worker -> version that it acts by, or waits for
        self.versions: dict[Version, dict[str, PolicyNetwork]] = {}
        self.answered = self.batches = self.observations = 0

    # what workers call

    def act(self, worker: int, version: Version, asked: dict[str, tuple[Any, ...]]) -> Any:
        """{policy: (actions, log-probabilities, memory after)} by exactly this version; `asked` holds each policy's `Question`."""
        with self.parking.lock:
            self.now_uses(worker, version)
            call = Call(worker, version, {name: Question(*question) for name, question in asked.items()}, time.monotonic())
            if self.parking.closed is None:
                self.calls.append(call)
            reply = self.parking.answer(lambda: call.answers)
        self.notify()
        return reply

    def now_uses(self, worker: int, version: Version) -> None:
        self.used[worker] = version
        # a worker asks one thing at a time: what is still open was asked by one that is lost, and that this one replaces
        self.calls = [call for call in self.calls if call.worker != worker]

    def describe(self) -> str:
        """What was done and who waits for what, in words."""
        with self.parking.lock:
            held = ", ".join(sorted(map(str, self.versions))) or "none"
            mean = self.observations / max(1, self.batches)
            parts = [
                f"inference/{self.index} answered {self.answered} calls in {self.batches} batches of {mean:.0f} observations on average",
                f"it holds versions: {held}",
                *self.awaited(),
            ]
            if self.calls:
                oldest = time.monotonic() - min(call.since for call in self.calls)
                parts.append(f"{len(self.calls)} calls wait, the oldest for {oldest:.1f} s")
        return "; ".join(parts)

    def awaited(self) -> list[str]:
        """Which versions workers wait for, in words."""
        asking = ", ".join(f"rollout/{worker}" for worker, used in sorted(self.used.items()) if used not in self.versions)
        return [f"no policies yet for {asking}; are the parameter shards and learners alive?"] if asking else []

    def close(self) -> None:
        with self.parking.lock:
            self.calls.clear()
            self.parking.close({"stopping": True})
        self.notify()

    def notify(self) -> None:
        """There is something to do."""
        if self.alone:
            self.step()
        else:
            self.news.set()

    # what its own thread does

    def wait(self, longest_s: float) -> None:
        """Until there is something new, or a batch has waited long enough."""
        with self.parking.lock:
            first = min((call.since for call in self.calls if call.version in self.versions), default=math.inf)
        left_s = first + self.max_wait_s - time.monotonic()
        with self.clock.waiting("calls"):
            self.news.wait(max(0.0, min(longest_s, left_s)))
        self.news.clear()

    def step(self) -> None:
        """See to the versions that are wanted, and answer what is due."""
        self.update()
        for batch in self.gather():
            with self.clock.computing("inference"):
                answers = self.infer(batch)
                with self.parking.lock:
                    for call, said in zip(batch, answers, strict=True):
                        call.answers = said
                    self.batches, self.answered = self.batches + 1, self.answered + len(batch)
                    self.observations += sum(call.observations for call in batch)
                    self.parking.settle()

    def update(self) -> None:
        """Take in versions that are wanted, and let others go. Raises what a shard raised, and PeerLost where one is gone."""
        raise AssertionError(f"{type(self).__name__} doesn't say where versions come from")

    def load(self, pulled: dict[str, Tensor]) -> dict[str, PolicyNetwork]:
        with self.clock.computing("versions"):
            policies = {name: copy.deepcopy(self.policies[name]) for name in pulled}
            for name, values in pulled.items():
                load_flat(policies[name], values.to(next(policies[name].parameters()).device))
        return policies

    def gather(self) -> list[list[Call]]:
        """Batches that are due, taken from those that wait."""
        with self.parking.lock:
            alike: dict[tuple[Any, ...], list[Call]] = {}
            for call in self.calls:
                if call.version in self.versions:
                    alike.setdefault(call.kind, []).append(call)
            waiting = {call.worker for call in self.calls}
            waiting |= {worker for worker, version in self.used.items() if version not in self.versions}
            now, batches = time.monotonic(), []
            for calls in alike.values():
                *full, last = self.cut(calls)
                batches += full
                waited = now - last[0].since >= self.max_wait_s or len(waiting) >= self.workers
                if waited or sum(call.observations for call in last) >= self.max_batch:
                    batches.append(last)
            taken = {id(call) for batch in batches for call in batch}
            self.calls = [call for call in self.calls if id(call) not in taken]
        return batches

    def cut(self, calls: Sequence[Call]) -> list[list[Call]]:
        """Batches of these calls in order, each as large as it may be; one call is never cut."""
        batches: list[list[Call]] = []
        size = 0
        for call in calls:
            size += call.observations
            if not batches or size > self.max_batch:
                batches.append([])
                size = call.observations
            batches[-1].append(call)
        return batches

    def infer(self, batch: list[Call]) -> list[dict[str, tuple[Any, ...]]]:
        """The answers to each call, from one forward pass of each policy over all of them."""
        answers: list[dict[str, tuple[Any, ...]]] = [{} for _ in batch]
        for name, policy in self.versions[batch[0].version].items():
            questions = [call.questions[name] for call in batch]
            bounds = [0]
            for question in questions:
                bounds.append(bounds[-1] + len(question.memory))
            whole = answer(policy, join(questions))
            for said, (start, stop) in zip(answers, pairwise(bounds), strict=True):
                said[name] = tuple(part(whole, slice(start, stop)))
        return answers


class ScheduledServer(InferenceServer):
    """In bulk synchronous training: workers name the versions that they are to act by."""

    handlers = ("turn_to", "act", "describe")

    def __init__(
        self, index: int, policies: dict[str, PolicyNetwork], parameters: ParameterClient, workers: int, config: InferenceConfig,
        clock: Clock, *, alone: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(index, policies, workers, config, clock, alone=alone)
        self.parameters = parameters
        self.pulls: dict[int, Pull] = {}
        self.final: int | None = None

    def turn_to(self, worker: int, version: int) -> Any:
        """The worker acts by this version from now on. Answers {"version": it} when it is here, {"final": version} when training ended
        before it."""

        def ready() -> dict[str, int] | None:
            if self.final is not None and version > self.final:
                return {"final": self.final}
            return {"version": version} if version in self.versions else None

        with self.parking.lock:
            self.now_uses(worker, version)
            reply = self.parking.answer(ready)
        self.notify()
        return reply

    def awaited(self) -> list[str]:
        parts = []
        for version, pull in self.pulls.items():
            asking = ", ".join(f"rollout/{worker}" for worker, used in sorted(self.used.items()) if used == version)
            parts.append(
                f"version {version}, which {asking or 'nobody any more'} asked for, hasn't come from {', '.join(sorted(pull.missing))} "
                f"in {time.monotonic() - pull.since:.0f} s; are the learners alive?"
            )
        return parts

    def update(self) -> None:
        """Send for the versions that are wanted, take in those that have come."""
        self.send_for_versions()
        self.take_versions()

    def send_for_versions(self) -> None:
        with self.parking.lock:
            named = {version for version in self.used.values() if isinstance(version, int)}
            wanted = named - self.versions.keys() - self.pulls.keys()
        for version in sorted(wanted if self.parking.closed is None else ()):
            calls = self.parameters.ask(version)
            names = [peer.name for peer in self.parameters.peers]
            with self.parking.lock:
                self.pulls[version] = Pull(calls, set(names), time.monotonic())
            for name, call in zip(names, calls, strict=True):
                call.then(lambda version=version, name=name: self.arrived(version, name))

    def arrived(self, version: int, shard: str) -> None:
        with self.parking.lock:
            self.pulls[version].missing.discard(shard)
        self.news.set()

    def take_versions(self) -> None:
        """Raises what a shard raised, and PeerLost where one is gone."""
        with self.parking.lock:
            came = {version: pull for version, pull in self.pulls.items() if not pull.missing}
        for version, pull in came.items():
            try:
                pulled = self.parameters.take(pull.calls, version)
            except Stopping:
                return  # this role is closed, too, or will be
            loaded = {} if isinstance(pulled, int) else {version: self.load(pulled)}
            with self.parking.lock:
                del self.pulls[version]
                self.versions |= loaded
                if isinstance(pulled, int):
                    self.final = pulled
                    # whoever waited for it is told, and comes again for the final one
                    self.used = {worker: used for worker, used in self.used.items() if used != version}
                self.parking.settle()
        with self.parking.lock:
            self.versions = {version: held for version, held in self.versions.items() if version in self.used.values()}


def join(questions: Sequence[Question]) -> Question:
    """One question from several, their copies one after another."""
    first = questions[0]
    if len(questions) == 1:
        return first
    noise = None
    if first.noise is not None:
        noise = {group: _cat(q.noise[group] for q in questions if q.noise is not None) for group in first.noise}
    inputs = {
        group: {name: _cat(q.inputs[group][name] for q in questions) for name in fields} for group, fields in first.inputs.items()
    }
    return Question(inputs, _cat(q.memory for q in questions), noise, first.epsilon)


def part(whole: Answer, copies: slice) -> Answer:
    """The answer for some copies."""
    # cloned: RPC can't send a view of no numbers (a policy's without a memory) that begins elsewhere than at 0
    actions, log_probs = ({group: x[copies].clone() for group, x in fields.items()} for fields in (whole.actions, whole.log_probs))
    return Answer(actions, log_probs, whole.memory[copies].clone())


def _cat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(parts))
