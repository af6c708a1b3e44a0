"""RPC between roles, over torch.distributed.rpc's TensorPipe agent.

Leaves call core roles; a call names one of the callee's own handlers, and nothing else can be called. Every message carries an HMAC
with the job's key, checked before anything is unpickled; the unpickler then knows a handful of names only. (Builtin and TorchScript
operators go past Python and can't be refused here: bind to loopback or a private network.)

Membership is *elastic* by default: PyTorch's own groups can't take a replacement, so each agent is built on a process-local store and
peers are added one by one from our registry. Names and ids are never used twice, since agents cache broken connections by id. The
*static* alternative is PyTorch's public `init_rpc`. torch's RPC is in maintenance mode: all that we use of it is in this file.

Sends are zero-copy: a tensor must not change until its call is answered, and handlers must return what will never change.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.autograd as dist_autograd
import torch.distributed.rpc as rpc
from torch.distributed.rpc import TensorPipeAgent, WorkerInfo, api, internal
from torch.futures import Future

from marl_hpc.comm.peers import PeerLost, Pending

DIGEST = 32
# what may be unpickled from a signed message: tensors' places, exceptions, the call itself; everything else is plain data
ALLOWED = {
    ("marl_hpc.comm.rpc", "_dispatch"), ("marl_hpc.comm.rpc", "_tensor"), ("torch.distributed.rpc.internal", "PythonUDF"),
    ("torch.distributed.rpc.internal", "RemoteException"), ("builtins", "slice"),
    ("torch.distributed.rpc.api", "_gather_to_leader"), ("torch.distributed.rpc.api", "_broadcast_to_followers"),  # static groups join so
}  # fmt: skip
_handlers: dict[str, Callable[..., Any]] = {}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return super().find_class(module, name)
        found = super().find_class(module, name) if module == "builtins" else None
        if isinstance(found, type) and issubclass(found, Exception):
            return found
        raise pickle.UnpicklingError(f"a message wants {module}.{name}, which isn't allowed")


class SigningPickler(internal._InternalRPCPickler):
    """Signs what is sent, and refuses what isn't signed with the same key before unpickling it."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self.key = key
        self._dispatch_table[torch.Tensor] = self._reduce_tensor

    def _reduce_tensor(self, tensor: torch.Tensor) -> Any:
        tables = internal._thread_local_tensor_tables
        tables.send_tables.append(tensor)
        return (_tensor, (len(tables.send_tables) - 1,))

    def _digest(self, data: bytes) -> bytes:
        return hmac.digest(self.key, data, hashlib.sha256)

    def serialize(self, obj: Any) -> tuple[bytes, list[torch.Tensor]]:
        data, tensors = super().serialize(obj)
        return self._digest(data) + data, tensors

    def deserialize(self, binary_data: bytes, tensor_table: list[torch.Tensor]) -> Any:
        signature, data = binary_data[:DIGEST], binary_data[DIGEST:]
        if not hmac.compare_digest(signature, self._digest(data)):
            raise PermissionError("refused a call that isn't signed with this job's key")
        tables = internal._thread_local_tensor_tables
        before = getattr(tables, "recv_tables", None)
        tables.recv_tables = tensor_table
        try:
            return _Unpickler(io.BytesIO(data)).load()
        finally:
            tables.recv_tables = before


def _tensor(index: int) -> torch.Tensor:
    return internal._thread_local_tensor_tables.recv_tables[index]


@rpc.functions.async_execution
def _dispatch(method: str, arguments: tuple[Any, ...]) -> Future:
    """Runs on the callee. A handler's future is passed on, so that a parked answer holds no thread."""
    if method not in _handlers:
        raise LookupError(f"no handler {method!r} here; handlers: {', '.join(_handlers) or 'none'}")
    answer = _handlers[method](*arguments)
    if isinstance(answer, Future):
        return answer
    done: Future = Future()
    done.set_result(answer)
    return done


def serve(target: Any, methods: tuple[str, ...]) -> None:
    """Let peers call these methods of `target`."""
    _handlers.update({method: getattr(target, method) for method in methods})


def sign_with(key: bytes) -> None:
    """Replace torch's pickler: from here on this process speaks only to holders of the key."""
    signing = SigningPickler(key)
    internal._internal_rpc_pickler = signing
    api._internal_rpc_pickler = signing
    api._default_pickler = signing


def _options(timeout_s: float, threads: int) -> rpc.TensorPipeRpcBackendOptions:
    # uv only: the default transports take 28 file descriptors and 8 MB a connection
    return rpc.TensorPipeRpcBackendOptions(
        num_worker_threads=threads, rpc_timeout=timeout_s, _transports=["uv"], _channels=["basic"]
    )


def join_elastic(name: str, number: int, timeout_s: float, threads: int = 4) -> str:
    """Start an agent that knows nobody yet; returns its address for the registry. `name` and `number` are never used again."""
    global _addresses
    _addresses = dist.HashStore()
    dist_autograd._init(number)
    agent = TensorPipeAgent(_addresses, name, number, None, _options(timeout_s, threads), {}, [])  # type: ignore[arg-type]
    api._init_rpc_states(agent)
    return _addresses.get(f"addrs/{name}").decode()


def join_static(store: dist.Store, name: str, rank: int, size: int, timeout_s: float, threads: int = 4) -> None:
    """PyTorch's own group: all ranks join together, and it lasts as long as all of them do."""
    # what init_rpc does after its own rendezvous, which would listen on every interface
    rpc_store = dist.PrefixStore("rpc", store)
    dist_autograd._init(rank)
    try:
        rpc._init_rpc_backend(rpc.BackendType.TENSORPIPE, rpc_store, name, rank, size, _options(timeout_s, threads))  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise PeerLost(f"a rank is gone that this one was joining: {str(error).splitlines()[0]}") from error


def introduce(name: str, number: int, address: str) -> None:
    """Make an elastic peer callable."""
    agent: Any = api._get_current_rpc_agent()
    if name not in {worker.name for worker in agent.get_worker_infos()}:
        _addresses.set(f"addrs/{name}", address)
        agent._update_group_membership(WorkerInfo(name, number), [], {}, True)


def leave() -> None:
    """Shut this process's agent down without waiting for anybody."""
    rpc.shutdown(graceful=False)


class RpcPeer:
    """Another role, by its agent's name."""

    def __init__(self, name: str, agent_name: str) -> None:
        self.name, self.agent_name = name, agent_name

    def call(self, method: str, *arguments: Any) -> Pending:
        try:
            future = rpc.rpc_async(self.agent_name, _dispatch, (method, arguments))
        except RuntimeError as error:
            raise PeerLost(f"{self.name} can't be called: {error}") from error
        return _RpcPending(self.name, future)


class _RpcPending:
    def __init__(self, name: str, future: Future) -> None:
        self.name, self.future = name, future
        self.done = threading.Event()
        future.add_done_callback(lambda _: self.done.set())

    def wait(self, *, deadline_s: float, describe: Callable[[], str], alive: Callable[[], None] | None = None) -> Any:
        until = time.monotonic() + deadline_s
        while not self.done.wait(min(1.0, deadline_s)):
            if alive is not None:
                alive()
            if time.monotonic() > until:
                raise TimeoutError(describe())
        try:
            return self.future.value()
        except RuntimeError as error:
            if "On WorkerInfo(" in str(error) or "PermissionError" in str(error):
                raise  # the handler's own exception, or its refusal; anything else is the connection's
            raise PeerLost(f"{self.name} is gone: {str(error).splitlines()[0]}") from error

    def then(self, call: Callable[[], None]) -> None:
        self.future.add_done_callback(lambda _: call())
