"""nginx with Lua and Redis: one worker, connections to Redis kept, the value wrapped in the reply."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loadtests.bodies import body
from loadtests.competitors import Running
from loadtests.competitors.answers import fault, fill_redis
from loadtests.processes import free_port
from loadtests.rig import Rig, filled_template, nginx

_DECODED = """
        local request = require("cjson.safe").decode(body)
        if not request then return ngx.exit(400) end
        local names, parts = {}, {}
        for name in pairs(request.configured_params) do names[#names + 1] = name end
        table.sort(names)
        for i, name in ipairs(names) do parts[i] = name .. "=" .. request.configured_params[name] end
        local key = ngx.md5(request.data_source_spec.data_source_id .. ":" .. table.concat(parts, "&"))
"""
_MATCHED = """
        local found = ngx.re.match(body, [["data_source_id":"([^"]+)".*"configured_params":\\{"tax_id":"([^"]+)"\\}]], "jo")
        if not found then return ngx.exit(400) end
        local key = ngx.md5(found[1] .. ":tax_id=" .. found[2])
"""


@dataclass(frozen=True, slots=True)
class NginxLua:
    """`any_order` takes any JSON request; without it a pattern takes these very bytes, in their order."""

    label: str = "nginx + Lua + Redis"
    any_order: bool = True

    @contextmanager
    def start(self, rig: Rig) -> Iterator[Running]:
        port = free_port()
        config = filled_template(
            rig, "lua.conf", port=port, derive=_DECODED if self.any_order else _MATCHED, redis_port=rig.redis_port
        )
        with nginx(rig, config, port, rig.cores.server) as process:
            yield Running(
                port, process, lambda drive: body(drive, rig.upstream(drive)), lambda drive: fill_redis(rig, drive), fault
            )
