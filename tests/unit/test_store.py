"""The control store, by real connections from other threads."""

import threading
import time

import pytest

from marl_hpc.comm.store import Store, StoreClient, StoreLost, StoreServer

KEY = b"k" * 32


@pytest.fixture
def server():
    server = StoreServer(Store(), "127.0.0.1", KEY)
    yield server
    server.close()


@pytest.fixture
def client(server):
    return StoreClient(server.address, KEY)


def in_threads(*actions):
    results = [None] * len(actions)

    def run(i):
        results[i] = actions[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def test_values_survive_the_wire(client):
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    client.set("x", value)
    assert client.get("x") == value
    assert client.get("y") is None
    assert client.scan("x") == {"x": value}


def test_first_default_wins_and_raising_twice_is_raising_once(client):
    assert client.set_default("outcome", "first") == "first"
    assert client.set_default("outcome", "second") == "first"
    assert [client.raise_to("generation", 1), client.raise_to("generation", 1), client.raise_to("generation", 0)] == [1, 1, 1]


def test_additions_from_many_threads_are_all_counted(client):
    in_threads(*[lambda: [client.add("n", 1) for _ in range(50)]] * 8)
    assert client.get("n") == 400


def test_who_waits_is_woken_by_the_key_and_not_by_others(client):
    def later():
        time.sleep(0.2)
        client.set("other/key", 1)
        time.sleep(0.2)
        client.set("awaited/key", 7)

    began = time.monotonic()
    found, _ = in_threads(lambda: client.wait("awaited/key", 10.0), later)
    assert found == 7
    assert 0.35 < time.monotonic() - began < 5
    assert client.wait("never", 0.1) is None


def test_watch_returns_with_what_is_new(client):
    def later():
        time.sleep(0.2)
        client.set("control/stop", "now")

    found, _ = in_threads(lambda: client.watch("control/", {}, 10.0), later)
    assert found == {"control/stop": "now"}
    assert client.watch("control/", found, 0.1) == found


def test_gather_gives_all_the_same_in_member_order_and_then_forgets(server, client):
    for round_number in range(20):
        key = f"0/round/{round_number}"
        assert in_threads(*[lambda i=i, key=key: client.gather(key, i, 3, i * 10, 10.0) for i in (2, 0, 1)]) == [[0, 10, 20]] * 3
    assert server.store._gathered == {}


def test_gather_may_be_asked_again(client):
    assert client.gather("g", 0, 2, "a", 0.05) is None
    assert client.gather("g", 0, 2, "a", 0.05) is None
    assert in_threads(lambda: client.gather("g", 0, 2, "a", 5.0), lambda: client.gather("g", 1, 2, "b", 5.0)) == [["a", "b"]] * 2


def test_wrong_key_gets_nothing(server, client):
    client.set("secret", 1)
    with pytest.raises(StoreLost, match="not ours"):
        StoreClient(server.address, b"wrong").get("secret")
    assert client.get("secret") == 1


def test_only_listed_operations_exist(client):
    with pytest.raises(StoreLost):
        client._call("__init__")


def test_a_lost_store_is_said(server, client):
    client.set("x", 1)
    server.close()
    with pytest.raises(StoreLost):
        StoreClient(server.address, KEY).get("x")
