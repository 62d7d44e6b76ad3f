"""A CI bot's step: run the tests as one call, and say what to do when they were stopped.

usage: client.py TENANT COMMAND [ARGUMENT...]
"""

import sys

import corral_client as corral


def main() -> int:
    tenant, *command = sys.argv[1:]
    try:
        with corral.open_session(tenant, "ci") as session:
            done = corral.run(command, session=session, call_class="test", memory="300M:2G", deadline=1800)
    except corral.Refused as err:
        print(f"not started ({err.code}): {err}")
        return 1
    except corral.DaemonAway as err:
        print(err)
        return 2
    print(f"status {done.returncode}, reason {done.outcome.reason}")
    for suggestion in done.outcome.suggestions:
        print(f"try: {suggestion}")
    return 0 if done.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
