"""The typed configuration: one frozen dataclass a section, each default in one place.

The `algorithm` and `env` sections stay plain dicts here: they are typed by the dataclass or the function signature that stands
beside the code they configure, once that code is imported. Imports nothing of ours and no torch: supervisors read it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


class ConfigError(ValueError):
    """The user asked for something that can't be: exit status 2, before any rank starts."""


@dataclass(frozen=True, kw_only=True)
class Run:
    dir: str | None = None  # default: runs/<env>-<algorithm>-<time>
    resume: str = "default"  # auto | never | a checkpoint's or run's path; default: auto where a launcher restarts us, else never
    grace_s: float = 20.0  # torchrun and SLURM kill 30 s after their signal; a stop has to be on disk before
    stop_before_end_s: float = 120.0  # stop by ourselves this long before the SLURM time limit


@dataclass(frozen=True, kw_only=True)
class Budget:
    env_steps: int = 1_000_000
    seconds: float | None = None
    return_mean: float | None = None  # a goal: the run ends when an evaluation reaches it


@dataclass(frozen=True, kw_only=True)
class Roles:
    learner: int | None = None
    rollout: int | None = None
    parameter: int | None = None
    dataset: int | None = None
    inference: int = 0  # 0: each rollout worker acts with its own copy of the policies


@dataclass(frozen=True, kw_only=True)
class Rollout:
    envs: int = 16  # copies of the environment per rollout worker
    fragment: int = 100  # steps of each copy in one fragment
    transfer: str = (
        "full"  # how policies are sent to who acts by them: full | bfloat16 | delta (bfloat16 differences; half the bytes)
    )
    max_lag: int = 1  # 0: strict lockstep; 1: fragment k+1 is collected with version k while the learner works on fragment k


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How an inference role gathers what rollout workers ask it."""

    max_batch: int = 1024  # observations of agents in one forward pass; a single worker's larger question is answered whole
    max_wait_ms: float = 2.0  # how long the first question waits for others; not at all when nobody else could ask


@dataclass(frozen=True, kw_only=True)
class Dataset:
    queue_bytes: int | None = None  # of fragments that wait in one dataset shard; default: as many as rollout.max_lag lets be there
    replay_bytes: int | None = None  # of one interface's replay in one dataset shard; default: what algorithm.capacity asks for
    spill: str | None = None  # a folder, best on a local disk: replay lies in files there instead of in memory


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    every_steps: int = 100_000
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    every_steps: int = 20_000
    episodes: int = 20
    final_episodes: int = 100
    greedy: bool = False  # act by the most likely action instead of sampling


@dataclass(frozen=True, kw_only=True)
class Cluster:
    interface: str | None = None  # network interface; default: the one on the route to the store
    membership: str = "elastic"  # elastic | static: how RPC peers join (static: any fault restarts all role processes)
    # false: a rank that a launcher started is its role, without a supervisor, and may use MPI; any fault ends the job
    supervise: bool = True


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    scale: float = 1.0  # multiplies every deadline below
    start_s: float = 180.0
    step_s: float = 60.0  # one environment step, one gradient step: who shows nothing for so long is hung
    wait_s: float = 600.0  # for peers that are alive but give nothing
    checkpoint_s: float = 600.0
    collective_s: float = 60.0
    node_s: float = 30.0  # a supervisor that says nothing for so long is lost, and the run ends resumable


@dataclass(frozen=True, kw_only=True)
class Faults:
    limit: int = 5  # faults of one role within window_s before the job gives up
    window_s: float = 3600.0  # multiplied by timeouts.scale like the deadlines that it has to be longer than


@dataclass(frozen=True, kw_only=True)
class Named:
    """A choice from a registry that takes no options of its own."""

    name: str = "none"


@dataclass(frozen=True, kw_only=True)
class Sync:
    """How learners of one interface exchange gradients: bulk synchronous, asynchronous, or bounded asynchronous."""

    name: str = "bsp"  # bsp: all sum gradients | asp: nobody waits | bap: nobody is more than `staleness` iterations ahead
    staleness: int | None = None  # bap; default 2
    iteration_s: float | None = (
        None  # bap: a gradient that takes longer is dropped, its learner goes on with the others; default: never
    )
    gradients: str = "float32"  # asp, bap: float32 | bfloat16: how gradients are sent
    max_data_lag: int | None = (
        None  # asp, bap: data of policies more versions (gradient steps) old is passed over; default: none is
    )


@dataclass(frozen=True, kw_only=True)
class Topology:
    """paradigm=networked: who are neighbors, and what they share."""

    name: str = "environment"  # environment: the edges that it has | a name of marl_hpc.topology.TOPOLOGIES | my_module:function
    options: Any = None  # {degree: 8, …}: what that function takes beside the number of agents
    # | max_degree | laplacian | uniform (the only one for directed graphs; where agents read, and are read by, equally many)
    weights: str = "metropolis_hastings"
    mix: str = "critic"  # what agents average with their neighbors after each gradient step: critic | all | none
    rounds: int = 1  # of averaging
    reward_discount: float = 0.0  # a reward d hops away counts this to the power of d; 0: an agent cares for its own alone
    reward_hops: int | None = None  # farther ones don't count; default: those that count less than 1 %
    partition: str = "keep"  # of agents over learners: keep (their order) | rcm | metis
    # auto | shared_memory | all_to_all | point_to_point | mpi: of parameters and rewards; what agents that talk tell each other always goes
    # point to point, since gradients come back
    transport: str = "auto"
    kernel: str = "torch"  # what sums neighbors' rows: torch | compiled, faster where a C compiler is


@dataclass(frozen=True, kw_only=True)
class Population:
    """Policies that are kept and meet one another. Which scheme takes which option stands in POPULATION_OPTIONS."""

    # none | self_play | fictitious_play | delta_uniform | league | psro | pipeline_psro | anytime_psro | nfsp
    name: str = "none"
    # learned: by the algorithm, against opponents drawn once an episode | exact: best responses and payoffs are computed, in games that
    # can be written down whole
    oracle: str = "learned"
    meta_solver: str = "nash"  # whom best responses answer; a name of marl_hpc.meta_solvers.META_SOLVERS | my_module:function
    meta_options: Any = None  # {alpha: 10, …}: what that function takes beside the payoffs
    # what populations begin with: network (as it is initialized) | uniform | pure (the lowest action everywhere) | random (a pure one,
    # exact only); default: network, pure where the oracle is exact
    start: str | None = None
    # exact
    iterations: int = 100  # at most
    tolerance: float = 1e-6  # the run ends when best responses gain no more than this, summed over players, in units of return
    regret_steps: int = 200  # of regret matching+ in each iteration
    # learned
    every_steps: int = 50_000  # environment steps of an iteration: then what was learned is frozen and joins its population
    greedy: bool | None = None  # frozen policies take their most likely actions; default: as best responses of psro
    fresh: bool = False  # what learns next begins anew; otherwise with what was frozen last
    live: float = 0.5  # the share of episodes in which all play as they learn; in the others one does, against frozen policies
    delta: float = 0.5  # the share of the newest frozen policies that is met (Bansal et al. 2018)
    anticipatory: float = 0.1  # η: the share of episodes in which a player acts by its best response (Heinrich & Silver 2016)
    # who learns beside the main agents (Vinyals et al. 2019): main, against them alone | league, against everybody
    exploiters: list[str] = field(default_factory=list)
    levels: int = 2  # that learn side by side, each against those below it (McAleer et al. 2020)
    responses: int = 1  # best responses of a player that learn side by side, for meta-solvers that ask for several
    updates: int = 10  # stages that a best response is learned for, while its opponents' mixture is updated (McAleer et al. 2022)
    lag: int = 0  # 1: the newest policies' payoffs are simulated while others learn, who meet them a stage later
    power: float = 2.0  # opponents are met in proportion to (1 - the newest one's rate of wins)^power (Vinyals et al. 2019)
    cross_play: bool = False  # payoffs of schemes that need none, too, so that their members are ranked
    # where payoffs come from: exact (computed) | simulated | auto (computed where the game can be written down whole)
    payoffs: str = "auto"
    # simulated: of 95 % intervals, in units of return, at which enough episodes were played; psro: of what each policy returns against
    # those that are met, so cells that nobody meets stay at min_episodes; league: of each cell's mean
    half_width: float = 0.05
    min_episodes: int = 100  # of a cell
    max_episodes: int = 1000
    cache: int = 64  # frozen policies that a rollout worker keeps in memory


@dataclass(frozen=True, kw_only=True)
class Config:
    seed: int = 0
    run: Run = field(default_factory=Run)
    budget: Budget = field(default_factory=Budget)
    env: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)
    paradigm: Named = field(default_factory=lambda: Named(name="independent"))
    sync: Sync = field(default_factory=Sync)
    topology: Topology = field(default_factory=Topology)
    population: Population = field(default_factory=Population)
    team_reward: str = "mean"  # what a team is rewarded for: mean | sum over its agents | individual
    interfaces: Any = (
        None  # {name: {groups, paradigm, algorithm, team_reward}}; default: one a group, or by the paradigm one for all
    )
    # shared: agents with equal spaces share a policy | separate: one policy each | {agent: group}
    groups: Any = "shared"
    roles: Roles = field(default_factory=Roles)
    rollout: Rollout = field(default_factory=Rollout)
    inference: Inference = field(default_factory=Inference)
    dataset: Dataset = field(default_factory=Dataset)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    evaluate: Evaluate = field(default_factory=Evaluate)
    cluster: Cluster = field(default_factory=Cluster)
    timeouts: Timeouts = field(default_factory=Timeouts)
    faults: Faults = field(default_factory=Faults)
    logger: Named = field(default_factory=Named)
    device: str = "auto"  # auto | cpu | cuda
    dtype: str = "float32"  # float32 | float64
    world: str = "processes"  # processes | inline


CHOICES = {
    "sync.name": ("bsp", "asp", "bap"),
    "rollout.transfer": ("full", "bfloat16", "delta"),
    "sync.gradients": ("float32", "bfloat16"),
    "team_reward": ("mean", "sum", "individual"),
    "topology.weights": ("metropolis_hastings", "max_degree", "laplacian", "uniform"),
    "topology.mix": ("critic", "all", "none"),
    "topology.partition": ("keep", "rcm", "metis"),
    "topology.kernel": ("torch", "compiled"),
    "topology.transport": ("auto", "shared_memory", "all_to_all", "point_to_point", "mpi"),
    "population.name": (
        "none",
        "self_play",
        "fictitious_play",
        "delta_uniform",
        "league",
        "psro",
        "pipeline_psro",
        "anytime_psro",
        "nfsp",
    ),
    "population.oracle": ("learned", "exact"),
    "population.start": (None, "network", "pure", "uniform", "random"),
    "population.payoffs": ("auto", "exact", "simulated"),
    "cluster.membership": ("elastic", "static"),
    "logger.name": ("none", "wandb"),
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("float32", "float64"),
    "world": ("processes", "inline"),
}

POSITIVE = (
    "budget.env_steps", "rollout.envs", "rollout.fragment", "checkpoint.every_steps", "checkpoint.keep", "evaluate.every_steps",
    "evaluate.episodes", "evaluate.final_episodes", "timeouts.scale", "timeouts.start_s", "timeouts.step_s", "timeouts.wait_s",
    "timeouts.checkpoint_s", "timeouts.collective_s", "timeouts.node_s", "run.grace_s", "faults.window_s", "inference.max_batch",
)  # fmt: skip


def lookup(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def validate(config: Config) -> Config:
    """Check what types alone can't. Raises ConfigError naming key, value and choices."""
    for key, choices in CHOICES.items():
        value = lookup(config, key)
        if value not in choices:
            raise ConfigError(f"{key}={value!r} is not a choice; choose one of: {', '.join(filter(None, choices))}")
    for key in POSITIVE:
        if not lookup(config, key) > 0:
            raise ConfigError(f"{key}={lookup(config, key)} must be greater than 0")
    if config.seed < 0:
        raise ConfigError(f"seed={config.seed} must be 0 or more")
    if config.rollout.max_lag not in (0, 1):
        raise ConfigError(f"rollout.max_lag={config.rollout.max_lag} is not a choice; 0 (strict lockstep) or 1 (overlap)")
    check_sync(config.sync)
    check_topology(config)
    check_population(config)
    for key in ("queue_bytes", "replay_bytes"):
        value = getattr(config.dataset, key)
        if value is not None and value < 1:
            raise ConfigError(f"dataset.{key}={value} must be 1 or more")
    for role in ("learner", "rollout", "parameter", "dataset"):
        count = getattr(config.roles, role)
        if count is not None and count < 1:
            raise ConfigError(f"roles.{role}={count}: every role needs at least one rank; leave it unset or give 1 or more")
    if config.roles.inference < 0:
        raise ConfigError(f"roles.inference={config.roles.inference} must be 0 (rollout workers act by themselves) or more")
    if not config.inference.max_wait_ms >= 0:
        raise ConfigError(f"inference.max_wait_ms={config.inference.max_wait_ms} must be 0 (answer at once) or more")
    if config.roles.inference == 0 and config.inference != Inference():
        set_ = [f"inference.{f.name}" for f in fields(Inference) if getattr(config.inference, f.name) != f.default]
        raise ConfigError(
            f"{', '.join(set_)} needs an inference role, and roles.inference=0; set roles.inference=1, or leave it out"
        )
    slowest = max(("start_s", "step_s", "checkpoint_s"), key=lambda key: getattr(config.timeouts, key))
    needed_s = (config.faults.limit + 1) * getattr(config.timeouts, slowest)
    if config.faults.window_s < needed_s:
        raise ConfigError(
            f"faults.window_s={config.faults.window_s:g}: a role that hangs for timeouts.{slowest}={getattr(config.timeouts, slowest):g} "
            f"each time would be started again for ever; set faults.window_s={needed_s:g} (faults.limit + 1 times as long) or more"
        )
    if "name" not in config.env:
        raise ConfigError("env.name is missing; choose an environment, for example env=mpe/simple_spread")
    if "name" not in config.algorithm:
        raise ConfigError("algorithm.name is missing; choose an algorithm, for example algorithm=ppo")
    return config


def check_sync(sync: Sync) -> None:
    """An option belongs to a mode, or it is refused."""
    usual = Sync()
    for key, modes in (
        ("staleness", ("bap",)), ("iteration_s", ("bap",)), ("gradients", ("asp", "bap")), ("max_data_lag", ("asp", "bap")),
    ):  # fmt: skip
        value = getattr(sync, key)
        if value != getattr(usual, key) and sync.name not in modes:
            raise ConfigError(f"sync.{key}={value} needs sync={' or '.join(modes)}; got sync={sync.name}: leave it out")
    for key, least in (("staleness", 0), ("max_data_lag", 0)):
        if getattr(sync, key) is not None and getattr(sync, key) < least:
            raise ConfigError(f"sync.{key}={getattr(sync, key)} must be {least} or more")
    if sync.iteration_s is not None and not sync.iteration_s > 0:
        raise ConfigError(f"sync.iteration_s={sync.iteration_s} must be greater than 0")


def networked(config: Config) -> bool:
    """Whether some agents are on a graph."""
    given = config.interfaces.values() if isinstance(config.interfaces, Mapping) else ()
    names = [section.get("paradigm") or config.paradigm.name for section in given if isinstance(section, Mapping)]
    return "networked" in (names or [config.paradigm.name])


def check_topology(config: Config) -> None:
    """A topology is networked learning's, and only that exchanges over one."""
    topology = config.topology
    if not networked(config):
        for f in fields(Topology):
            if getattr(topology, f.name) != f.default:
                raise ConfigError(
                    f"topology.{f.name}={getattr(topology, f.name)} needs paradigm=networked; got paradigm={config.paradigm.name}: leave it out"
                )
        return
    if config.sync.name != "bsp":
        raise ConfigError(
            f"sync={config.sync.name} with paradigm=networked: agents step and mix by themselves, there are no gradients to exchange; leave sync out"
        )
    if topology.rounds < 1:
        raise ConfigError(f"topology.rounds={topology.rounds} must be 1 or more")
    if topology.mix == "none":
        check_unmixed(topology)
    if not 0 <= topology.reward_discount <= 1:
        raise ConfigError(f"topology.reward_discount={topology.reward_discount} must lie between 0 and 1")
    if topology.reward_hops is not None and (topology.reward_hops < 1 or not topology.reward_discount):
        raise ConfigError(
            f"topology.reward_hops={topology.reward_hops} must be 1 or more, and needs topology.reward_discount; got {topology.reward_discount}"
        )
    if topology.transport == "mpi" and config.cluster.supervise:
        raise ConfigError(
            "topology.transport=mpi with cluster.supervise=true: a supervised role is a child of a process that has used MPI, after which a child "
            "can't; set cluster.supervise=false (then a fault of any rank ends the job), or leave topology.transport out"
        )
    if topology.reward_discount == 1 and topology.reward_hops is None:
        raise ConfigError("topology.reward_discount=1 counts rewards however far; set topology.reward_hops")


def check_unmixed(topology: Topology) -> None:
    """Where agents average nothing, options of averaging are refused; rewards are summed over neighbors by some of them."""
    usual = Topology()
    brought = topology.weights == "uniform" and topology.name in ("exponential", "one_peer_exponential")  # by the topology's file
    for key, about, got in (
        ("rounds", "", ""), ("weights", "", ""),
        ("kernel", " or topology.reward_discount", " and topology.reward_discount=0"),
        ("transport", " or topology.reward_discount", " and topology.reward_discount=0"),
    ):  # fmt: skip
        value = getattr(topology, key)
        if value == getattr(usual, key) or (key == "weights" and brought) or (about and topology.reward_discount):
            continue
        raise ConfigError(
            f"topology.{key}={value} is about topology.mix=critic or all{about}; got topology.mix=none{got}: leave it out"
        )


def learns_population(config: Config) -> bool:
    """Whether policies are learned that join populations."""
    return config.population.name != "none" and config.population.oracle == "learned"


def computes_population(config: Config) -> bool:
    """Whether best responses are computed, and nothing is learned."""
    return config.population.name != "none" and config.population.oracle == "exact"


EXPLOITERS = ("main", "league")
SIMULATED = ("half_width", "min_episodes", "max_episodes")
LEARNED_ONLY = (
    "every_steps", "greedy", "fresh", "live", "delta", "anticipatory", "exploiters", "levels", "responses", "updates", "lag", "power", "cross_play", "payoffs",
    *SIMULATED, "cache",
)  # fmt: skip
NEEDS_TABLE = ("psro", "pipeline_psro", "anytime_psro", "league")  # schemes that look at payoffs
EXACT_ONLY = ("iterations", "tolerance", "regret_steps")
POPULATION_OPTIONS = {  # whose they are; others are everybody's
    **dict.fromkeys(("meta_solver", "meta_options"), ("psro", "pipeline_psro")), "regret_steps": ("anytime_psro",),
    "live": ("delta_uniform", "league"), "delta": ("delta_uniform",), "anticipatory": ("nfsp",), "power": ("league",), "exploiters": ("league",),
    "fresh": ("psro", "pipeline_psro", "anytime_psro", "fictitious_play", "delta_uniform", "league"),
    "levels": ("pipeline_psro",), "responses": ("psro",), "updates": ("anytime_psro",),
    "cross_play": ("self_play", "fictitious_play", "delta_uniform", "nfsp"), "lag": NEEDS_TABLE,
}  # fmt: skip
ORACLES = {
    "self_play": ("learned", "exact"), "fictitious_play": ("learned", "exact"), "psro": ("learned", "exact"),
    "delta_uniform": ("learned",), "league": ("learned",), "pipeline_psro": ("learned",), "nfsp": ("learned",),
    "anytime_psro": ("learned", "exact"),
}  # fmt: skip


def needs_table(section: Population) -> bool:
    """Whether payoffs of learned policies are found out: the scheme looks at them, or members are to be ranked."""
    return section.name in NEEDS_TABLE or section.cross_play


def check_population(config: Config) -> None:
    """An option belongs to a scheme and to an oracle, or it is refused."""
    population, usual = config.population, Population()
    name, oracle = population.name, population.oracle
    if name != "none" and oracle not in ORACLES[name]:
        raise ConfigError(f"population.oracle={oracle} with population={name}, which takes: {', '.join(ORACLES[name])}")
    for f in fields(Population):
        value, owners = getattr(population, f.name), POPULATION_OPTIONS.get(f.name, ())
        if f.name == "name" or value == getattr(usual, f.name):
            continue
        if name == "none":
            raise ConfigError(
                f"population.{f.name}={value} needs a population, such as population=psro; got population=none: leave it out"
            )
        if owners and name not in owners:
            raise ConfigError(
                f"population.{f.name}={value} is about population={' or '.join(owners)}; got population={name}: leave it out"
            )
        if f.name in ("payoffs", *SIMULATED) and oracle == "learned" and not needs_table(population):
            raise ConfigError(
                f"population.{f.name}={value} is about payoffs, which population={name} doesn't need: leave it out, or set "
                "population.cross_play=true"
            )
        for needed, keys in (("learned", LEARNED_ONLY), ("exact", EXACT_ONLY)):
            if f.name in keys and oracle != needed:
                raise ConfigError(f"population.{f.name}={value} is about population.oracle={needed}; got {oracle}: leave it out")
    if name == "none":
        return
    for key in ("iterations", "regret_steps", "every_steps", "cache", "levels", "responses", "updates"):
        if getattr(population, key) < 1:
            raise ConfigError(f"population.{key}={getattr(population, key)} must be 1 or more")
    for key in ("tolerance", "power"):
        if not getattr(population, key) >= 0:
            raise ConfigError(f"population.{key}={getattr(population, key)} must be 0 or more")
    if population.lag not in (0, 1):
        raise ConfigError(f"population.lag={population.lag} must be 0 or 1")
    if unknown := [kind for kind in population.exploiters if kind not in EXPLOITERS]:
        raise ConfigError(f"population.exploiters has {', '.join(map(str, unknown))}; known: {', '.join(EXPLOITERS)}")
    if not 0 < population.anticipatory <= 1:
        raise ConfigError(f"population.anticipatory={population.anticipatory} must lie between 0 and 1, and above 0")
    if not 0 <= population.live <= 1 or not 0 < population.delta <= 1:
        raise ConfigError(
            f"population.live={population.live}, population.delta={population.delta}: shares lie between 0 and 1, delta above 0"
        )
    if not population.half_width > 0 or not 2 <= population.min_episodes <= population.max_episodes:
        raise ConfigError(
            f"population.half_width={population.half_width}, min_episodes={population.min_episodes}, max_episodes={population.max_episodes}: "
            "expected half_width above 0 and 2 ≤ min_episodes ≤ max_episodes"
        )
    if population.payoffs == "exact" and any(getattr(population, key) != getattr(usual, key) for key in SIMULATED):
        raise ConfigError(
            f"population.payoffs=exact simulates nothing: leave out {', '.join(f'population.{key}' for key in SIMULATED)}"
        )
    if population.meta_options is not None and not isinstance(population.meta_options, Mapping):
        raise ConfigError(f"population.meta_options={population.meta_options!r} must be {{option: value}}")
    if oracle == "exact":
        check_exact(config)
        return
    if population.start == "random":
        raise ConfigError("population.start=random is about population.oracle=exact; got learned: network, uniform or pure")
    if config.sync.name != "bsp":
        raise ConfigError(
            f"sync={config.sync.name} with population={name}: populations grow at iterations that all learners agree on; leave sync out"
        )
    if networked(config):
        raise ConfigError(
            f"paradigm=networked with population={name}: agents on a graph have no opponents; choose another paradigm"
        )


def check_exact(config: Config) -> None:
    """What computes instead of learning takes no options of learning."""
    learning = {
        "sync": config.sync != Sync(), "paradigm": config.paradigm.name != "independent", "interfaces": config.interfaces is not None,
        "roles.inference": config.roles.inference > 0, "roles.learner": (config.roles.learner or 1) > 1, "budget.return_mean": config.budget.return_mean is not None,
        "algorithm": set(config.algorithm) != {"name"}, "population.start=network": config.population.start == "network",
    }  # fmt: skip
    usual = Config()
    whole = [f"{section}.{f.name}" for section in ("rollout", "dataset", "evaluate") for f in fields(lookup(usual, section))]
    for key in ("groups", "team_reward", "dtype", "budget.env_steps", "checkpoint.every_steps", *whole):
        value = lookup(config, key)
        learning[f"{key}={value}"] = value != lookup(usual, key)
    for key, given in learning.items():
        if given:
            raise ConfigError(f"{key} is about learning, and population.oracle=exact computes best responses: leave it out")


def fingerprint(config: Config) -> str:
    """A hash over what decides which policies come out: a checkpoint of one fingerprint continues under the same one only.

    Where and how long to run, with how many ranks, and how to log or evaluate may change from one attempt to the next.
    """
    record = asdict(config)
    for key in (
        "run", "budget", "roles", "inference", "cluster", "timeouts", "faults", "logger", "evaluate", "checkpoint", "dataset", "world", "device",
    ):  # fmt: skip
        del record[key]
    for key in ("partition", "transport"):  # bits don't depend on them
        del record["topology"][key]
    del record["population"]["iterations"]  # how far to go
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
