"""What the doctor asks of devices and of the software that drives them.

Read `finding.py` (what a check returns), `facts.py` (what is known of this machine without torch), then the checks of it:
`versions.py` with `known_good.yaml`, `software.py`, `environment.py`, `network.py`; `probes.py` and `collective.py` run in
processes of their own, since a broken driver can take its process with it.
"""
