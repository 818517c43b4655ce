"""compose.tls.yaml, which adds a proxy to docker-compose.yaml. tests/page/test_tls.py runs the proxy."""

from __future__ import annotations

import yaml

from fmnist_tasks.settings import PROJECT

DECLARED = yaml.safe_load((PROJECT / "compose.tls.yaml").read_text())
SERVICES = DECLARED["services"]


def test_forwarded_headers_are_accepted_only_from_the_proxy() -> None:
    main = yaml.safe_load((PROJECT / "docker-compose.yaml").read_text())
    assert SERVICES.keys() - main["services"].keys() == {"proxy"}
    assert SERVICES["api-server"]["command"] == [*main["services"]["api-server"]["command"], "--proxy-headers"]
    (network,) = DECLARED["networks"]["proxy"]["ipam"]["config"]
    assert SERVICES["api-server"]["environment"] == {"FORWARDED_ALLOW_IPS": network["subnet"]}
    assert [name for name, service in SERVICES.items() if "proxy" in service.get("networks", [])] == [
        "api-server",
        "proxy",
    ]


def test_the_proxy_is_confined_and_mounts_the_tested_configuration() -> None:
    proxy = SERVICES["proxy"]
    assert (proxy["user"], proxy["read_only"], proxy["cap_drop"]) == ("nginx", True, ["ALL"])
    assert proxy["security_opt"] == ["no-new-privileges:true"]
    assert proxy["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    sources = {volume.split(":")[0] for volume in proxy["volumes"] if volume.startswith("./")}
    assert sources == {"./deploy/proxy/nginx.conf"}
    assert all((PROJECT / source).is_file() for source in sources)
    assert all(volume.endswith(":ro") for volume in proxy["volumes"])
