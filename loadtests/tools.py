"""The programs that a benchmark needs and Python's packages don't bring: found, or installed on Debian by root, or named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from loadtests.processes import LoadError, child_environment

_PATH = f"{os.defpath}:/usr/sbin:/usr/local/bin:/usr/local/sbin"


def _program(name: str) -> Callable[[], bool]:
    return lambda: find(name) is not None


def _file(pattern: str) -> Callable[[], bool]:
    return lambda: any(Path("/usr").glob(pattern))


REQUIRED: dict[str, Callable[[], bool]] = {
    "wrk": _program("wrk"),
    "nginx": _program("nginx"),
    "libnginx-mod-http-lua": _file("lib/nginx/modules/ngx_http_lua_module.so"),
    "lua-nginx-redis": _file("share/lua/5.1/nginx/redis.lua"),
    "lua-cjson": _file("lib/*/lua/5.1/cjson.so"),
    "redis-server": _program("redis-server"),
}
OPTIONAL: dict[str, Callable[[], bool]] = {
    "varnish": _program("varnishd"),
    "varnish-modules": _file("lib/*/varnish/vmods/libvmod_bodyaccess.so"),
}


def find(name: str) -> str | None:
    """Where a program is, the places of daemons included."""
    return shutil.which(name) or shutil.which(name, path=_PATH)


def missing(packages: dict[str, Callable[[], bool]]) -> list[str]:
    return [name for name, there in packages.items() if not there()]


def ensure() -> None:
    """Install what is missing where that is possible. Raises `LoadError` naming the packages where it is not."""
    wanted = missing(REQUIRED | OPTIONAL)
    if wanted and os.geteuid() == 0 and shutil.which("apt-get"):
        _install(wanted)
    if still := missing(REQUIRED):
        raise LoadError(f"the benchmark needs these Debian packages: apt-get install {' '.join(still)}")


def _install(packages: list[str]) -> None:
    # Runlevel 1: the packages' own services are not started beside the ones of the run.
    extra = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (("update", "-qq"), ("install", "-qq", "-y", "--no-install-recommends", *packages)):
        subprocess.run(("apt-get", *words), env=child_environment(extra), stdout=2, check=False)
