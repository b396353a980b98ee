"""Ray, and nothing else here knows it: a cluster to work on, an actor for each replica, a GPU for the driver itself.

Without an address Ray is started on this machine for this process alone: its ports are bound to the loopback, and it
asks for this user's token. A cluster that somebody started listens where they said; its token is used if there is one.
No dashboard is started. The driver has a GPU of its own node, so a cluster with GPUs is driven from a node with one.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from pipeline.config import ConfigError, RunConfig
from pipeline.environment import gpu_count, has_gpu
from pipeline.scale.lending import Lender
from pipeline.scale.replica import ASIDE

OBJECT_BYTES = 256 << 20  # of Ray's store on this machine: what crosses is small
CONNECT_LIMIT = 10.0  # seconds until a cluster answers
SEATED_LIMIT = 60.0  # seconds until the driver's place is set aside
GROUPS = {"model": 1, "aside": 8}  # threads of an actor
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0 makes the address of this machine 127.0.0.1, on Linux, too
NICENESS = "RAY_worker_niceness"  # of actors; Ray's default of 15 puts an engine's loop behind all graders


class RayHandle:
    """A replica that is an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        group = "aside" if method in ASIDE else "model"
        return getattr(self._actor, method).options(concurrency_group=group).remote(*arguments).future()

    def kill(self) -> None:
        import ray

        ray.kill(self._actor, no_restart=True)


class RayLauncher:
    """Replicas as actors, one a GPU, or where there is none one a core.

    kind: the class of a replica. trains: whether this process is one, too, and has a GPU of its own. To be made before
    CUDA is used: it chooses the driver's GPU. Raises `ConfigError` where the cluster cannot be reached or is too small.
    """

    def __init__(self, config: RunConfig, kind: type, *, trains: bool = True) -> None:
        self._asked, self._address, self._trains = config.replicas, config.ray_address, trains
        self._resource = "GPU" if has_gpu() else "CPU"
        self._kind = kind
        self._folder: Path | None = None  # of a cluster of one's own
        if self._address is None:
            self._start_here()
        else:
            self._attach(self._address)
        if self._asked != "auto" and int(self._asked) > self._places():
            places = self._places()
            self.close()
            raise ConfigError(
                f"--replicas {self._asked}: every replica needs a {self._resource}, and there are {places}; use at "
                f"most that many"
            )

    def start(self, number: int) -> RayHandle:
        import ray

        actor = ray.remote(**self._needs, concurrency_groups=GROUPS, max_restarts=0)(self._kind)
        return RayHandle(actor.remote(number))

    def start_on(self, node: str) -> RayHandle:
        """A replica on the node of that id."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = ray.remote(**self._needs, concurrency_groups=GROUPS, scheduling_strategy=there)(self._kind)
        return RayHandle(actor.remote(0))

    def nodes(self) -> list[tuple[str, str]]:
        """(name, id) of the nodes with room for a replica."""
        import ray

        alive = (node for node in ray.nodes() if node["Alive"] and node["Resources"].get(self._resource, 0) >= 1)
        return sorted((name_of(node), node["NodeID"]) for node in alive)

    def lenders(self, config: RunConfig) -> list[tuple[str, RayHandle]]:
        """With `--grader-nodes` the name of every node that has no GPU, and its graders, which start."""
        if not config.grader_nodes or self._resource != "GPU":
            return []
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        handles = []
        for node in ray.nodes():
            if node["Alive"] and not node["Resources"].get("GPU"):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                groups = {"model": 4 * int(node["Resources"].get("CPU", 1)), "aside": 1}
                actor = ray.remote(num_cpus=0, concurrency_groups=groups, scheduling_strategy=there)(Lender)
                handles.append((name_of(node), RayHandle(actor.remote(config))))
        return handles

    def wanted(self) -> int:
        return self._places() if self._asked == "auto" else int(self._asked)

    @property
    def sharing(self) -> int:
        """How many replicas share a node's cores; 0: as many as that node has GPUs."""
        return self.wanted() if self._address is None else 0

    def close(self) -> None:
        stop_ray(self._folder)

    @property
    def _needs(self) -> dict[str, int]:
        """What a replica takes, in Ray's books."""
        return {"num_gpus": 1, "num_cpus": 0} if self._resource == "GPU" else {"num_cpus": 1}

    def _places(self) -> int:
        """How many replicas there is room for, the driver's own among them."""
        import ray

        own = 1 if self._address is None else 0  # of which Ray was told nothing
        return int(ray.cluster_resources().get(self._resource, 0)) + own

    def _start_here(self) -> None:
        """Start Ray for this process, with all GPUs but the first, which is the driver's."""
        others: dict[str, int]
        if self._resource == "GPU":
            first, *rest = visible_gpus()
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(rest)
            others = {"num_gpus": len(rest), "num_cpus": 0}
        else:
            cores = len(os.sched_getaffinity(0))
            count = cores if self._asked == "auto" else min(int(self._asked), cores)
            others = {"num_gpus": 0, "num_cpus": count - 1}
            threads = max(1, cores // count)
            os.environ.setdefault("OMP_NUM_THREADS", str(threads))
            torch.set_num_threads(threads)
        self._folder = start_ray(**others)
        if self._resource == "GPU":
            os.environ["CUDA_VISIBLE_DEVICES"] = first

    def _attach(self, address: str) -> None:
        import ray
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

        logging.getLogger("ray").setLevel(logging.ERROR)
        advice = "start one with `ray start --head`, or leave the option out"
        try:
            check_answers(address)
            advice = "every node needs the cluster's token in ~/.ray/auth_token and the same packages (`make setup`)"
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # Ray itself does so for `auto` alone
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())[:300]
            what = f"--ray-address {address}: no Ray cluster can be used there"
            raise ConfigError(f"{what} ({reason}); {advice}") from None
        if self._trains:
            self._take_place()

    def _take_place(self) -> None:
        """Set a GPU of this node, or a core where there is none, aside for this process, so that no replica gets it."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        given = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        if given:  # `ray job submit --entrypoint-num-gpus 1` has done it
            os.environ["CUDA_VISIBLE_DEVICES"] = given[0]
            return
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._keeper = ray.remote(**self._needs, scheduling_strategy=here)(Keeper).remote()
        try:
            gpu = ray.get(self._keeper.gpu.remote(), timeout=SEATED_LIMIT)
        except ray.exceptions.RayError:
            self.close()
            raise ConfigError(
                f"--ray-address: this node has no free {self._resource}, and the driver trains, too; start it on a "
                f"node with one"
            ) from None
        if self._resource == "GPU":
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def name_of(node: Mapping[str, Any]) -> str:
    """A node of `ray.nodes()`, for people."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def check_answers(address: str) -> None:
    """Raise `OSError` or `ValueError` where nobody listens: Ray itself would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address:
        raise ValueError("the driver must run on a node of the cluster, where `auto` or HOST:PORT finds it")
    found = canonicalize_bootstrap_address(address) or ""
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_LIMIT).close()
    except OSError as error:
        raise OSError(f"nobody answers at {found}: {error.strerror or error}") from None


def start_ray(**resources: int) -> Path:
    """Start Ray for this process alone, reachable from this machine alone and only with this user's token. Actors have
    this process's niceness. Returns the folder of its logs and sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path may have 107 characters
    os.environ[LOOPBACK] = os.environ[NICENESS] = "0"
    os.environ.pop("RAY_AUTH_MODE", None)  # its default for a cluster of one's own is a token
    try:
        import ray

        ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # where another library has imported Ray before
        ray.init(
            address="local",  # not one that somebody else has started here
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_BYTES,
            _temp_dir=str(folder),
            **resources,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def stop_ray(folder: Path | None) -> None:
    """End Ray, or leave a cluster, whose `folder` is not ours to remove."""
    import ray

    ray.shutdown()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)  # its last processes may still be writing


class Keeper:
    """Holds a GPU or a core in Ray's books for a process that is no actor."""

    def gpu(self) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told:
        return [name.strip() for name in told.split(",") if name.strip()]
    return [str(index) for index in range(gpu_count())]
