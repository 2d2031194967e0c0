"""Real slow links on one Linux machine: n processes in n network namespaces.

namespaces.py   the links, set up and torn down
delay.py        packets that are on their way for a time
running.py      one process in each namespace, ended after a time limit
collectives.py  what a function sends: found, replaced by copies, run alone
steps.py        one step of a method, whole and in parts
worker.py       what one process measures
__main__.py     time per step of all methods at all rates
report.py       its table
parts.py        gradient, encode, send and decode of 2, 4 and 8 workers
training.py     loss against seconds, by train.py
curves.py       its table
figures.py      figures of both
"""
