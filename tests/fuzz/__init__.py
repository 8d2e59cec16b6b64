"""Hostile input: a module for each kind of it, with ``check(data)`` and ``seeds()``.

``check`` takes any bytes, hands them to procnet as the outside world would, and raises
``AssertionError`` (or lets out what should not have left procnet) where a property does not hold.
``seeds`` are inputs that get far. ``run.py`` looks for inputs that break a property, guided by
coverage; ``corpus/TARGET/`` keeps what it found on the way, and ``test_corpus.py`` tries it again.
"""

TARGETS = ("frames", "files", "proc", "netlink", "conntrack", "records", "output")
