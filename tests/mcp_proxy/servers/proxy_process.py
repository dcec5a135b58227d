"""A process that holds a proxy until it is killed: prints the proxy's URL and the id of a daemon of its server."""

import json
import sys
from pathlib import Path

from tests.mcp_proxy.harness import RawClient, Rig


def main() -> None:
    rig = Rig(Path(sys.argv[1]))
    proxy = rig.start(["spawn_daemon"])
    client = RawClient(proxy.url)
    client.initialize()
    daemon = client.call("spawn_daemon").text
    print(json.dumps({"url": proxy.url, "daemon": daemon}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
