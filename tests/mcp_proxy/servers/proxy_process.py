"""A process that holds a proxy until it is killed: prints the proxy's URL and its server's process id."""

import json
import sys
from pathlib import Path

from tests.mcp_proxy.harness import RawClient, Rig


def main() -> None:
    rig = Rig(Path(sys.argv[1]))
    proxy = rig.start(["spawn_child", "environ"])
    client = RawClient(proxy.url)
    client.initialize()
    client.call("environ")
    print(json.dumps({"url": proxy.url}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
