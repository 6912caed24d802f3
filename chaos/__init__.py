"""Holdfast in bad weather: programs that break what can break, and check that nothing was lost or left over.

python -m chaos                    real processes, all faults, and a checker that reads only what they wrote
python -m chaos --hostile          attackers, alone and together, while honest callers are watched
python -m chaos.soak               the same for longer: does memory grow, is a connection left over?
python -m chaos.admission          clients that leave at every phase: does admission get back what it gave?
python -m chaos.rolling_restart    gateways replaced behind HAProxy or nginx while streams run
"""
