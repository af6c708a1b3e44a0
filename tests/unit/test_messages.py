"""Agents that talk: what they hear comes from neighbors, one hop a step, and what it is worth flows back to who said it."""

import copy

import pytest
import torch
from torch import nn

from marl_hpc import topology
from marl_hpc.actors import build_policy
from marl_hpc.messages import KINDS, CommunicatingNetwork, LocalMessages, neighbor_table
from marl_hpc.types import ActionSpace, GroupSpec

D, A, H, E, BITS = 3, 4, 5, 6, 3
T, B = 7, 2
GRAPH = topology.from_edges([(0, 1), (1, 2), (2, 3), (1, 3), (3, 4)])
N, DEGREE = GRAPH.agents, int(GRAPH.degrees.max())


def network_of(kind, graph=GRAPH):
    return {
        "hidden": [8, E], "activation": "tanh", "agent_id": True, "stacked": True, "gru": H, "messages": kind, "message_size": BITS,
        "neighbors": graph.edges.tolist(),
    }  # fmt: skip


def group(agents=N, space=None, mask=False):
    return GroupSpec(
        name="all", agents=tuple(f"a{i}" for i in range(agents)), observation_shape=(D,),
        action_space=space or ActionSpace(kind="discrete", n=A), action_mask=mask,
    )  # fmt: skip


def different(module, scale=0.4):
    """Agents' rows apart from each other, as learning leaves them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for rows in module.parameters():
            rows += scale * torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    return module


def sequence(dtype=torch.float64, active=0.8):
    generator = torch.Generator().manual_seed(2)
    first = torch.rand(T, B, generator=generator) < 0.2
    first[3, 1] = True
    fields = {
        "observation": torch.randn(T, B, N, D, generator=generator, dtype=dtype),
        "active": torch.rand(T, B, N, generator=generator) < active,
        "action_mask": (torch.rand(T, B, N, A, generator=generator) < 0.6) | (torch.arange(A) == 1),
    }
    return fields, first


class Alone:
    """One agent's part of a network that talks, written out with torch's own layers on vectors of one copy."""

    def __init__(self, network, agent):
        self.kind, self.agent = network.kind, agent
        parts = [layer[agent] for layer in network.layers()]
        pairs = [(weight, bias[0]) for weight, bias in zip(parts[::2], parts[1::2], strict=True)]
        self.encoder, (wi, bi), (wh, bh), *self.others, self.head = pairs[:2], *pairs[2:]
        self.cell = nn.GRUCell(len(wi), H, dtype=wi.dtype)
        self.cell.load_state_dict({"weight_ih": wi.T, "bias_ih": bi, "weight_hh": wh.T, "bias_hh": bh})
        self.hears = [j for i, j in GRAPH.edges.tolist() if i == agent]

    def padded(self, parts, size):
        return torch.cat([*parts, torch.zeros((DEGREE - len(parts)) * size, dtype=torch.float64)])

    def message(self, hidden):
        weight, bias = self.others[0]
        return (hidden @ weight + bias > 0).double()

    def step(self, observations, hiddens, fingerprints, messages):
        """(hidden state, outputs) from everybody's observations now, and hidden states, fingerprints and messages before."""
        x = observations[self.agent]
        if self.kind == "neurcomm":
            x = torch.cat([x, self.padded([observations[j] for j in self.hears], D)])
        for weight, bias in self.encoder:
            x = torch.tanh(x @ weight + bias)
        if self.kind == "neurcomm":
            (wh, bh), (wp, bp) = self.others
            said = torch.tanh(self.padded([hiddens[j] for j in self.hears], H) @ wh + bh)
            meant = torch.tanh(self.padded([fingerprints[j] for j in self.hears], A) @ wp + bp)
            x = torch.cat([x, said, meant])
        elif self.kind == "commnet":
            weight, bias = self.others[0]
            x = x + sum(hiddens[j] for j in self.hears) / len(self.hears) @ weight + bias
        else:
            weight, bias = self.others[1]
            x = x + torch.tanh(self.padded([messages[j] for j in self.hears], BITS) @ weight + bias)
        hidden = self.cell(x[None], hiddens[self.agent][None])[0]
        return hidden, hidden @ self.head[0] + self.head[1]


@pytest.mark.parametrize("kind", KINDS)
def test_an_unrolled_policy_is_each_agents_own_loop_over_what_it_hears(kind):
    policy = different(build_policy([group(mask=True)], network_of(kind)).double())
    fields, first = sequence()
    start = torch.rand(B, *policy.memory_shape, dtype=torch.float64)
    with torch.no_grad():
        parameters = policy.parameters_of({"all": fields}, start, first)["all"]
        agents = [Alone(policy.network, i) for i in range(N)]
        for b in range(B):
            hidden, said = list(start[b, :, :H]), list(start[b, :, H:])
            for t in range(T):
                if first[t, b]:
                    hidden, said = [x * 0 for x in hidden], [x * 0 for x in said]
                messages = [agents[i].message(hidden[i]) for i in range(N)] if kind == "dial" else None
                steps = [agent.step(fields["observation"][t, b], hidden, said, messages) for agent in agents]
                for i, (after, outputs) in enumerate(steps):
                    if fields["active"][t, b, i]:
                        probabilities = outputs.masked_fill(~fields["action_mask"][t, b, i], -torch.inf).softmax(-1)
                        torch.testing.assert_close(parameters[t, b, i].exp(), probabilities)
                        hidden[i], said[i] = after, probabilities


@pytest.mark.parametrize("space", [None, ActionSpace(kind="multi_discrete", nvec=(2, 3)), ActionSpace(kind="box", shape=(2,))])
@pytest.mark.parametrize("kind", KINDS)
def test_what_acts_step_by_step_is_what_is_learned_from(kind, space):
    policy = different(build_policy([group(space=space)], network_of(kind)).double())
    fields, first = sequence()
    fields.pop("action_mask")
    memory, acted = torch.zeros(B, *policy.memory_shape, dtype=torch.float64), []
    with torch.no_grad():
        for t in range(T):
            memory = memory.masked_fill(first[t, :, None, None], 0)
            action, log_prob, memory = policy.act({"all": {name: x[t] for name, x in fields.items()}}, memory, None)
            acted.append((action["all"], log_prob["all"]))
        actions, log_probs = (torch.stack(parts) for parts in zip(*acted, strict=True))
        parameters = policy.parameters_of({"all": fields}, torch.zeros_like(memory), first)["all"]
    learned = policy.distributions["all"].log_prob(parameters, actions)
    torch.testing.assert_close(learned[fields["active"]], log_probs[fields["active"]])


def receivers_loss(network, observation, agent):
    """What agent's outputs are worth after T steps, and nobody else's."""
    first, active = torch.zeros(T, B, dtype=torch.bool), torch.ones(T, B, N, dtype=torch.bool)
    start = torch.zeros(B, N, H, dtype=torch.float64)
    return network.unroll(observation, start, first, active)[0][-1, :, agent].square().sum()


@pytest.mark.parametrize("kind", ["neurcomm", "commnet"])
def test_the_gradient_of_what_a_receiver_makes_of_it_reaches_the_senders_row(kind):
    network = different(CommunicatingNetwork(group(), A, network_of(kind), 1.0, 0).double())
    observation = sequence()[0]["observation"]
    receivers_loss(network, observation, agent=0).backward()
    gradient = network.rows.grad.clone()
    generator = torch.Generator().manual_seed(3)
    for sender in (0, 1, 4):  # itself, a neighbor, and one three hops away
        direction = torch.randn(network.rows.shape[1], generator=generator, dtype=torch.float64)
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                network.rows[sender] += step * direction
                losses.append(receivers_loss(network, observation, agent=0))
                network.rows[sender] -= step * direction
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope.abs() > 1e-7
        torch.testing.assert_close(gradient[sender] @ direction, slope, rtol=1e-6, atol=1e-10)


def test_bits_pass_gradients_to_their_sender_though_they_are_bits():
    network = different(CommunicatingNetwork(group(), A, network_of("dial"), 1.0, 0).double())
    receivers_loss(network, sequence()[0]["observation"], agent=0).backward()
    assert (network.rows.grad[1:].abs().sum(1) > 0).all()


@pytest.mark.parametrize(("kind", "delay"), [("neurcomm", 1), ("commnet", 0), ("dial", 0)])
def test_what_an_agent_sees_travels_one_hop_a_step(kind, delay):
    """Neighbors' observations themselves are heard in NeurComm, so that it is a step ahead."""
    graph = topology.from_edges([(i, i + 1) for i in range(4)])
    network = different(CommunicatingNetwork(group(5), A, network_of(kind, graph), 1.0, 0).double(), 1.0)
    first, active = torch.zeros(T, B, dtype=torch.bool), torch.ones(T, B, 5, dtype=torch.bool)
    seen = torch.zeros(T, B, 5, D, dtype=torch.float64, requires_grad=True)
    outputs = network.unroll(seen, torch.zeros(B, 5, H, dtype=torch.float64), first, active)[0]
    for hops in range(5):
        for t in range(T):
            (gradient,) = torch.autograd.grad(outputs[t, :, hops].sum(), seen, retain_graph=True)
            assert bool(gradient[0, :, 0].any()) == (t >= hops - delay * (hops > 0))


def test_neighbors_are_gathered_in_order_and_their_gradients_are_summed():
    messages = LocalMessages(neighbor_table(GRAPH.edges, N))
    x = torch.arange(1.0, N + 1).requires_grad_()
    assert messages.gather(x).tolist() == [[2, 0, 0], [1, 3, 4], [2, 4, 0], [2, 3, 5], [4, 0, 0]]
    messages.gather(x).sum().backward()
    assert x.grad.tolist() == GRAPH.degrees.tolist()
    with pytest.raises(ValueError, match="5 agents are here"):
        messages.gather(torch.zeros(3, 2))


def test_agents_whose_neighbors_are_elsewhere_ask_for_what_reaches_them():
    network = CommunicatingNetwork(group(3), A, network_of("commnet"), 1.0, 0)
    with pytest.raises(RuntimeError, match="set `neighbors`"):
        network.step(torch.zeros(1, 3, D), torch.zeros(1, 3, H))


@pytest.mark.parametrize("kind", KINDS)
def test_agents_start_equal(kind):
    network = CommunicatingNetwork(group(), A, network_of(kind), 1.0, 0)
    assert (network.rows == network.rows[0]).all()


def test_an_outline_has_shapes_and_a_copy_hears_the_same():
    with torch.device("meta"):
        outline = build_policy([group()], network_of("neurcomm"))
    policy = build_policy([group()], network_of("neurcomm"))
    assert [p.shape for p in outline.parameters()] == [p.shape for p in policy.parameters()]
    fields = {"observation": torch.randn(2, N, D), "active": torch.ones(2, N, dtype=torch.bool)}
    memory = torch.rand(2, *policy.memory_shape)
    after = [p.act({"all": fields}, memory, None)[2] for p in (policy, copy.deepcopy(policy))]
    assert torch.equal(*after)
