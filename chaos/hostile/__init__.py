"""A hostile suite: some forty attacks on one gateway, alone and together, while honest callers are watched.

    make chaos ARGS="--hostile"                            each attack for 20 s, then all together
    make chaos ARGS="--hostile --only ws-empty-pings"      one of them
    make chaos ARGS="--hostile --minutes 1"                a sample of them in four groups, for each change

The gateway is a process of its own on core 0; the attackers, the honest callers and the providers share core 1.
Each row is a new gateway that is first used without an attack (the start), then attacked, then left alone until it
is as at the start, for a bounded time. `verdict.py` has the bounds and judges; it knows nothing of Holdfast.

What is measured, and why a busy machine is not counted as the gateway's fault:

- **Gap**: the time between two tokens of a stream whose provider sends one each 20 ms. It begins with the token
  before, or where the provider itself was late, 20 ms before the provider sent this one (each token says when it
  was sent). The first token counts as well: from the request to it, less what the provider takes by agreement.
- **Probe**: the time that `GET /healthz` takes, asked each 10 ms on one connection, and each 250 ms on a new one.
- A stall must not hide behind the few samples that it lets through: a gap of n paces also counts as the n - 1
  shorter ones that callers who kept their pace would have seen. So a stall of a second is 50 late tokens, not one.
- **Lateness of our own**: the kernel says how long a process was ready to run and had no core
  (/proc/PID/schedstat). What the honest process so waited before it looked at its sockets is taken off each time
  stamp, and what the gateway so waited is taken off each gap and probe, since other processes of the machine took
  it and not a guest. The column *stolen* shows the gateway's share of such waiting: near 0 on a quiet machine.
  Attackers go on meanwhile, and a gateway that has half of a core finds twice as much in its sockets each time it
  looks. So where more than a tenth is stolen, the bounds of gaps and probes are as much wider as its time is less.
- The quiet values come from the same run: the same callers, while a process that attacks nobody keeps core 1 as
  busy as attackers do.
"""
