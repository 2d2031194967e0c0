"""The laboratory of slow links: its tables; and, as root, its namespaces."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.network import (
  __main__ as laboratory,
)
from benchmarks.network import (
  collectives,
  curves,
  namespaces,
  parts,
  report,
  running,
  steps,
  training,
)
from configs import network_cifar10_cpu
from moniqua_jax import workers
from moniqua_jax.plots import kept
from tests import hlo, programs
from tests.trained import compiled_quickly

N = 8
ROOT = programs.ROOT


# ------------------------------------------------------------------- pure parts
def _blocks(seconds, tx):
  keys = ('tx_packets', 'rx_bytes', 'rx_packets')
  return [
    {'seconds': s, 'tx_bytes': t, **dict.fromkeys(keys, 1.0)}
    for s, t in zip(seconds, tx, strict=True)
  ]


def _reports():
  """Two processes, three blocks of each part."""
  part = lambda worker, scale: _blocks(
    scale * (np.array([1.0, 9.0, 2.0]) + worker), [100.0, 110.0, 120.0]
  )
  return [
    {
      'claimed': 90.0,
      'size': 5,
      'load': 1.0 + worker,
      'parts': {
        'full': part(worker, 4.0),
        'compute': part(worker, 1.0),
        'codec': part(worker, 0.5),
        'empty': part(worker, 0.1),
      },
    }
    for worker in range(2)
  ]


def test_a_cell_is_the_median_of_the_slowest_and_the_mean_of_the_bytes():
  cell = report.merged(_reports(), shared=False)
  assert cell['parts']['full']['seconds'] == 12.0  # of 8, 40, 12
  assert cell['parts']['full']['tx_bytes'] == 110.0
  assert cell['largest_load'] == 2.0
  shared = report.merged(_reports(), shared=True)
  assert shared['parts']['full']['tx_bytes'] == 55.0  # one counter for both


def test_the_parts_of_a_step_add_up():
  times = report.split(report.merged(_reports(), shared=False))
  assert times['talk'] == times['codec'] + times['wire']
  assert times['full'] == pytest.approx(times['compute'] + times['talk'])


def test_bytes_are_compared_with_and_without_headers():
  packets = {'tx_bytes': 1000.0, 'tx_packets': 10.0}
  empty = {'tx_bytes': 100.0, 'tx_packets': 1.0}
  cell = {'claimed': 340.0 - 34, 'parts': {'full': packets, 'empty': empty}}
  assert report.bytes_ratio(cell) == 1000 / 406
  assert report.bytes_ratio(cell, header=66) == 1.0


def _cell(rate, method, full):
  part = lambda seconds: dict(
    seconds=seconds, tx_bytes=2e3, tx_packets=2.0, rx_bytes=0.0, rx_packets=0.0
  )
  return {
    'rate': rate,
    'method': method,
    'title': method.upper(),
    'model': 'mlp270k',
    'n': N,
    'size': 270_000,
    'batch_size': 4,
    'rounds': 3,
    'steps': 2,
    'claimed': 1e3,
    'largest_load': 1.5,
    'machine': 'some',
    'link': {'rate': None, 'mtu': 1500, 'delay': 0.0, 'bucket': ''},
    'parts': {
      'full': part(full),
      'compute': part(0.5),
      'codec': part(0.25),
      'empty': part(0.1),
    },
  }


def test_a_table_compares_with_full_precision_at_the_same_rate():
  cells = [
    _cell('10mbit', 'moniqua1', 1.0),
    _cell('10mbit', 'dpsgd', 4.5),
    _cell('loopback', 'moniqua1', 0.75),
  ]
  cells = report.ordered(cells, steps.METHODS)
  lines = report.table(cells).splitlines()
  rows = [[c.strip() for c in line.split('|')[1:-1]] for line in lines[2:5]]
  assert [row[0] for row in rows] == ['loopback', '10mbit', '10mbit']
  head = [c.strip() for c in lines[0].split('|')[1:-1]]
  one_bit = dict(zip(head, rows[2], strict=True))
  assert one_bit['communication'] == '250.0'
  assert one_bit['times less'] == '8.00'  # 4.0 s over .5 s
  assert one_bit['step, times faster'] == '4.50'
  loopback = dict(zip(head, rows[0], strict=True))
  assert loopback['times less'] == '–'  # nothing to compare with


def test_a_step_in_parts_adds_up_and_its_rows_are_by_workers(tmp_path):
  seconds = dict(full=9.0, compute=2.0, codec=4.0, encode=1.0, messages=2.5)
  cells = [
    _cell('10mbit', 'qsgd4', 9.0)
    | {'model': parts.MODEL, 'n': n, 'two_passes': True, 'local_steps': 4}
    | {'parts': {k: {'seconds': v, 'tx_bytes': 0} for k, v in seconds.items()}}
    for n in (4, 2)
  ]
  took = parts.split(cells[0])
  assert took['encode'] == 1.25 and took['decode'] == 2.75  # one chunk of four
  assert sum(took.values()) == 2 * took['step']
  assert parts.section(tmp_path) == ''
  kept.write_lines(tmp_path / 'cells.jsonl', cells)
  (tmp_path / 'training.md').write_text('loss and seconds\n')
  parts.write(tmp_path)
  parts.write(tmp_path)  # in the place of what was there
  head, text = (tmp_path / 'training.md').read_text().split(parts.HEADING)
  assert head == 'loss and seconds\n'
  rows = [line.split('|')[3].strip() for line in text.splitlines()[2:4]]
  assert rows == ['2', '4']


def test_steps_in_turns_are_compared_block_against_block():
  cell = _cell('loopback', 'moniqua4', 2.0) | {'beside': 'dpsgd'}
  cell['parts']['full']['seconds_of_blocks'] = [1.1, 4.8, 2.0]
  cell['parts']['beside'] = {'seconds_of_blocks': [1.0, 4.0, 2.0]}
  line = report.table([cell]).splitlines()[-1]
  assert line.endswith('moniqua4 takes 1.10 times as long.')


def test_counters_of_ip():
  one = {'ifname': 'eth0', 'stats64': {'rx': {'bytes': 5}, 'tx': {'bytes': 7}}}
  assert namespaces.parse_counters(json.dumps([one])) == {'tx': 7, 'rx': 5}


@pytest.mark.parametrize('rate', ['10', 'fast', '0mbit', '-1mbit', '10mb'])
def test_a_rate_that_is_none_is_refused(rate):
  with pytest.raises(ValueError, match='give'):
    namespaces.parse_rate(rate)


@pytest.mark.parametrize('delay', ['20', '-1ms', '2s', 'ms'])
def test_a_delay_that_is_none_is_refused(delay):
  with pytest.raises(ValueError, match="give '0ms'"):
    namespaces.parse_delay(delay)


@pytest.mark.parametrize('rate', ['10mbit', '100mbit', '1gbit'])
def test_a_bucket_holds_a_frame_and_no_more_than_a_few(rate):
  link = namespaces.Link(namespaces.parse_rate(rate))
  words = namespaces.bucket(link).split()
  burst = int(words[words.index('burst') + 1])
  assert burst >= link.mtu + namespaces.FRAME
  assert burst <= 10 * (link.mtu + namespaces.FRAME)


def test_the_command_of_a_worker(tmp_path):
  network = namespaces.Network(('a', 'b'), ('10.0.0.1', '10.0.0.2'), 'eth0')
  args = laboratory.parsed([f'--out={tmp_path}', '--n=2'])
  command = laboratory.worker(['dpsgd'], 1, network, tmp_path, args)
  assert '--process_id=1' in command
  assert '--coordinator_address=10.0.0.1:7000' in command
  inside = network.inside(1, command)
  assert inside[:4] == ['ip', 'netns', 'exec', 'b']


def test_mistakes_are_one_line(tmp_path, capsys):
  assert laboratory.main([f'--out={tmp_path}', '--methods=fast']) == 2
  assert laboratory.main([f'--out={tmp_path}', '--rates=fast']) == 2
  assert parts.main([f'--out={tmp_path}', '--methods=fast']) == 2
  cells = [_cell('10mbit', 'dpsgd', 1.0)]
  kept.write_lines(tmp_path / 'cells.jsonl', cells)
  other = '--rates=10mbit', '--methods=dpsgd', '--model=mlp270k'
  assert laboratory.main([f'--out={tmp_path}', *other]) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 4 and all(line.startswith('error: ') for line in lines)
  assert "'batch_size': 4}, not with {" in lines[-1]


CHURN = """
import threading
from benchmarks.network import worker

ended = threading.Event()

def churn():
  while not ended.is_set():
    threading.Thread(target=lambda: None).start()

threading.Thread(target=churn).start()
try:
  for _ in range(300):
    worker.stay_on(0)
finally:
  ended.set()
"""


def test_a_process_is_kept_on_a_core_while_its_threads_end(tmp_path):
  program = tmp_path / 'churn.py'
  program.write_text(CHURN)
  run = programs.run(str(program), folder=tmp_path)
  assert run.status == 0, run.err


def test_without_rights_or_tools_one_line_says_so(monkeypatch):
  monkeypatch.setattr(os, 'geteuid', lambda: 1000)
  with pytest.raises(namespaces.NetworkError, match=r"root|no 'ip'|no 'tc'"):
    namespaces.check()
  monkeypatch.setenv('PATH', '')
  with pytest.raises(namespaces.NetworkError, match="no 'ip'"):
    namespaces.check()


# ------------------------------------------------------- the parts of one step
def _ring(x):
  left = tuple((i, (i - 1) % N) for i in range(N))
  right = tuple((i, (i + 1) % N) for i in range(N))
  send = lambda perm: jax.lax.ppermute(x, workers.AXIS, perm)
  return send(left) + send(right) + jax.lax.pmean(x, workers.AXIS)


def test_collectives_are_found_and_replaced_by_copies():
  x = jnp.arange(3.0)
  used = collectives.found(_ring, workers.AXIS, N, x)
  names = [equation.primitive.name for equation in used]
  assert names == ['ppermute', 'ppermute', 'psum']
  copied = collectives.with_copies(_ring, jnp.zeros(3, jnp.int32))
  run = workers.sharded(copied, (0,))
  rows = jnp.stack([x + i for i in range(N)])
  np.testing.assert_allclose(run(rows), (2 + 1 / N) * rows, rtol=1e-6)
  text = run.lower(rows).compile().as_text()
  assert not list(hlo.collectives(text))


def test_what_is_sent_first_is_found_without_sending_it():
  def gossip(x):
    y = 2 * x + jax.lax.pmax(x, workers.AXIS)
    return _ring(y) + 5

  zeros = jnp.zeros(4, jnp.int32)
  run = workers.sharded(collectives.until_messages(gossip, zeros), (0,))
  rows = jnp.ones((N, 3)) * jnp.arange(N)[:, None]
  (sent,) = run(rows)
  np.testing.assert_allclose(sent, 3 * rows)
  assert not list(hlo.collectives(run.lower(rows).compile().as_text()))
  mean = lambda x: jax.lax.pmean(x, workers.AXIS)
  run = workers.sharded(collectives.until_messages(mean, zeros), (0,))
  assert jax.eval_shape(run, rows) == []


def test_collectives_in_branches_are_copied_where_they_stand():
  shift = lambda hop: tuple((i, (i + hop) % N) for i in range(N))
  send = lambda hop: (
    lambda x: hop * jax.lax.ppermute(x, workers.AXIS, shift(hop))
  )
  turns = lambda x, k: jax.lax.switch(k, [send(1), send(2), send(4)], x)
  x = jnp.arange(3.0)
  (used,) = collectives.found(turns, workers.AXIS, N, x, 0)
  assert used.params['perm'] == shift(4)
  copied = collectives.with_copies(turns, jnp.zeros(1, jnp.int32))
  run = workers.sharded(copied, (0, None))
  rows = jnp.stack([x + i for i in range(N)])
  for k, hop in enumerate((1, 2, 4)):
    np.testing.assert_allclose(run(rows, k), hop * rows)
  unequal = lambda x, k: jax.lax.switch(k, [send(1), lambda x: x], x)
  with pytest.raises(ValueError, match='branches with different collectives'):
    collectives.found(unequal, workers.AXIS, N, x, 0)
  loop = lambda x: jax.lax.while_loop(lambda x: x[0] < 1, send(1), x)
  with pytest.raises(ValueError, match='ppermute stands inside while'):
    collectives.found(loop, workers.AXIS, N, x)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  'method',
  [
    pytest.param('moniqua1', marks=SLOW),
    pytest.param('nuqsgd4', marks=SLOW),
    pytest.param('choco4', marks=SLOW),
    pytest.param('d2', marks=SLOW),
  ],
)
def test_alone_the_collectives_of_the_step_are_as_many(method):
  config = steps.configured(method, 'mlp270k', N, batch_size=1)
  parts = steps.make(config)
  sent = {name: _sent(part) for name, part in parts.of_step.items()}
  kinds = lambda name: [kind for kind, _, _ in sent[name]]
  assert sorted(kinds('empty')) == sorted(kinds('full')) != []
  assert max(size for _, _, size in sent['empty']) <= 4 * 2 * N
  assert sorted(sent['messages']) == sorted(sent['full'])
  assert sent['compute'] == sent['codec'] == sent['encode'] == []


def _sent(part):
  lowered = part.step.lower(part.state, *part.inputs, np.int32(0))
  with compiled_quickly(False):
    return list(hlo.collectives(lowered.compile().as_text()))


# ------------------------------------------------------------- loss and seconds
def _rows(seconds, losses):
  return [
    {'step': 10 * i, 'seconds': s, 'train/loss': loss}
    for i, (s, loss) in enumerate(zip(seconds, losses, strict=True), 1)
  ]


def test_seconds_to_a_loss_count_from_the_first_row():
  rows = _rows([30.0, 31.0, 32.0, 33.0], [2.0, 1.5, 1.0, 0.5])
  line = curves.curve(rows, smooth=2)
  np.testing.assert_allclose(line.seconds, [0, 1, 2, 3])
  np.testing.assert_allclose(line.loss, [2.0, 1.75, 1.25, 0.75])
  assert curves.seconds_to(line, 1.3) == 2.0
  assert curves.seconds_to(line, 0.1) is None


def test_seconds_leave_out_evaluations():
  rows = _rows([30.0, 31.0, 42.0, 43.0], [2.0, 1.5, 1.0, 0.5])
  rows[2]['test/accuracy'] = 0.5
  np.testing.assert_allclose(curves.curve(rows).seconds, [0, 1, 2, 3])


def _trained(link, method, seconds, losses, seed=0):
  config = network_cifar10_cpu.get_config(method).to_dict() | {'seed': seed}
  rows = [row | {'wire/bytes_sent': 1e6} for row in _rows(seconds, losses)]
  note = {'ended': 'done', 'seconds': 300}
  return curves.Run(link, method, method.upper(), rows, config, note)


def test_the_table_says_who_was_first(tmp_path):
  falling = [2.0, 1.0, 1.0, 1.0]
  runs = [
    _trained('10mbit', 'dpsgd', [5.0, 9.0, 13.0, 17.0], falling),
    _trained('10mbit', 'moniqua1', [7.0, 8.0, 9.0, 10.0], falling),
    _trained('1mbit', 'dpsgd', [5.0, 6.0, 7.0, 8.0], falling),
    _trained('1mbit', 'moniqua1', [7.0, 9.0, 11.0, 13.0], falling),
  ]
  assert curves.reached_by_all(runs) == 1.25
  training.write(runs, 1.5, tmp_path)
  text = (tmp_path / 'training.md').read_text()
  assert '10mbit: moniqua1 1.0 s, dpsgd 4.0 s.\n' in text
  assert '1mbit: dpsgd 1.0 s, moniqua1 2.0 s; not Moniqua first.\n' in text
  assert (tmp_path / 'training.svg').stat().st_size > 0


def test_seeds_are_one_row_and_who_does_not_always_come_there_is_not_first():
  falling, level = [2.0, 1.0, 1.0, 1.0], [2.0] * 4
  quick, slow = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 7.0, 10.0]
  runs = [
    _trained('10mbit, 20ms', 'dpsgd', quick, falling),
    _trained('10mbit, 20ms', 'dpsgd', slow, falling, seed=1),
    _trained('10mbit, 20ms', 'sent1', quick, falling),
    _trained('10mbit, 20ms', 'sent1', quick, level, seed=1),
  ]
  lines = curves.table(runs, 1.5).splitlines()
  head, _, *rows = ([c.strip() for c in x.split('|')[1:-1]] for x in lines[:4])
  rows = [dict(zip(head, row, strict=True)) for row in rows]
  assert [row['seeds'] for row in rows] == ['2', '2']
  assert [row['seconds to loss 1.5'] for row in rows] == [
    '2.0 ± 1.4',
    '1.0 (1)',
  ]
  assert rows[1]['times D-PSGD'] == '2.00'
  assert lines[-1] == '10mbit, 20ms: dpsgd 2.0 s; not Moniqua first.'


def test_a_run_has_the_name_of_its_link_and_seed():
  names = [
    training.name('dpsgd', '10mbit', delay, seed)
    for delay in ('0ms', '20ms')
    for seed in (0, 1)
  ]
  assert names[0] == '10mbit-dpsgd'  # as before there were delays and seeds
  assert len(set(names)) == 4


def test_the_command_of_a_training_process(tmp_path):
  network = namespaces.Network(('a', 'b'), ('10.0.0.1', '10.0.0.2'), 'eth0')
  command = training.command('c.py:dpsgd', 1, network, tmp_path, {'workers': 2})
  assert '--config=c.py:dpsgd' in command
  assert '--process_id=1' in command and '--num_processes=2' in command
  assert '--config.workers=2' in command


# ------------------------------------------------------------- runs are kept
def _left(method, seed, network, folder, args):
  """What `training.train` leaves: a run of an epoch, or one that failed."""
  folder.mkdir(parents=True)
  if method == 'allreduce':
    return 'process 1 ended with status 2: error: no data'
  rows = _rows(0.1 * np.arange(97) ** 1.5, 2 / np.sqrt(1 + np.arange(97)))
  for row in rows[23::24]:
    row['test/accuracy'] = 0.3
  lines = [json.dumps(row | {'wire/bytes_sent': 1e3}) for row in rows]
  (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  config = network_cifar10_cpu.get_config(method).to_json()
  (folder / 'config.json').write_text(config)
  (folder / 'run.json').write_text('{}')
  return 'done'


def test_a_run_is_kept_with_all_its_rows_and_one_that_failed_is_told(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(training, 'train', _left)
  monkeypatch.setattr(training.figures, 'first', lambda *args: None)
  monkeypatch.setattr(
    namespaces, 'network', lambda n, link: contextlib.nullcontext()
  )
  out, runs = tmp_path / 'kept', tmp_path / 'runs'
  ask = lambda methods: training.main(
    ['--rates=10mbit', f'--methods={methods}', f'--out={out}', f'--runs={runs}']
  )
  assert ask('dpsgd') == 0 and ask('dpsgd,allreduce') == 1
  folder = runs / '10mbit-dpsgd'
  methods = list(network_cifar10_cpu.METHODS)
  (run,) = curves.loaded(out, methods)
  pairs = zip(
    *map(curves.curve, (run.rows, kept.load(folder).rows)), strict=True
  )
  for line, whole in pairs:
    np.testing.assert_allclose(line, whole, rtol=1e-6)
  (out / 'runs.jsonl').unlink()
  kept.write([kept.load(folder)], out)  # in the points of a figure
  with pytest.raises(ValueError, match='means of several rows of 10mbit-dpsgd'):
    curves.loaded(out, methods)


# ------------------------------------------------------------------- namespaces
def _why_not():
  try:
    namespaces.check()
    with namespaces.network(1, namespaces.Link(1e9)):
      return ''
  except namespaces.NetworkError as error:
    return str(error)


needs_root = pytest.mark.skipif(
  os.geteuid() != 0 or shutil.which('ip') is None,
  reason='network namespaces need Linux, root and iproute2',
)

RECEIVE = """
import socket, sys
server = socket.create_server(('', 5000))
peer, _ = server.accept()
for size in map(int, sys.argv[1:]):
  while size > 0:
    size -= len(peer.recv(1 << 20))
  peer.sendall(b'.')
"""
SEND = """
import socket, sys, time
for _ in range(100):
  try:
    peer = socket.create_connection((sys.argv[1], 5000))
    break
  except OSError:
    time.sleep(0.05)
for size in map(int, sys.argv[2:]):
  began = time.perf_counter()
  peer.sendall(bytes(size))
  peer.recv(1)
  print(time.perf_counter() - began)
"""
OWNER = """
import sys
from benchmarks.network import namespaces, running
import pathlib
with namespaces.network(2, namespaces.Link(1e7)) as network:
  print(*network.names, flush=True)
  sleep = [[sys.executable, '-c', 'import time; time.sleep(600)']] * 2
  running.run(network, sleep, pathlib.Path(sys.argv[1]), 300)
"""


@pytest.mark.slow
@needs_root
def test_a_link_has_its_rate_and_counts_its_bytes(tmp_path):
  if why := _why_not():
    pytest.skip(why)
  sizes = ['34000', '1000000']
  with namespaces.network(2, namespaces.Link(10e6)) as network:
    before = network.counted(0)
    send = [sys.executable, '-c', SEND, network.addresses[1], *sizes]
    receive = [sys.executable, '-c', RECEIVE, *sizes]
    running.run(network, [send, receive], tmp_path, 60)
    sent = network.counted(0)['tx'] - before['tx']
  times = list(map(float, (tmp_path / 'process_0.txt').read_text().split()))
  total = sum(map(int, sizes))
  assert 1 < sent / total < 1.05
  # Not sooner than the bits, less one bucket, can pass.
  assert times[0] > 8 * (34_000 - 2 * 3264) / 10e6
  assert 0.8 < times[1] < 1.6
  assert not _ours()


def test_frames_are_held_back_and_stay_in_order():
  ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  theirs.setblocking(False)
  program = 'import sys; from benchmarks.network import delay; '
  program += 'delay.hold(int(sys.argv[1]), 0.05, 100)'
  argv = [sys.executable, '-c', program, str(theirs.fileno())]
  holding = subprocess.Popen(argv, pass_fds=[theirs.fileno()], cwd=ROOT)
  try:
    ours.settimeout(20)
    ours.send(b'it is there')
    ours.recv(100)
    sent = time.monotonic()
    for frame in (b'first', b'second', b'third'):
      ours.send(frame)
    assert [ours.recv(100) for _ in range(3)] == [b'first', b'second', b'third']
    assert 0.049 <= time.monotonic() - sent < 0.5
  finally:
    holding.kill()
    holding.wait()
    ours.close(), theirs.close()


@pytest.mark.slow
@needs_root
def test_a_delay_is_one_of_packets_and_leaves_the_rate(tmp_path):
  if why := _why_not():
    pytest.skip(why)
  sizes = ['1'] * 10 + ['250000', '1250000']
  try:
    with namespaces.network(2, namespaces.Link(10e6, delay=0.02)) as network:
      send = [sys.executable, '-c', SEND, network.addresses[1], *sizes]
      receive = [sys.executable, '-c', RECEIVE, *sizes]
      running.run(network, [send, receive], tmp_path, 60)
  except namespaces.NetworkError as error:
    pytest.skip(str(error))
  assert not _ours()  # and with them the process that held the packets
  times = list(map(float, (tmp_path / 'process_0.txt').read_text().split()))
  assert 0.0395 <= np.median(times[:10]) < 0.044
  # What came in the time of a million bytes, and headers, all behind a start.
  headers = (namespaces.MTU + namespaces.FRAME) / (namespaces.MTU - 52)
  assert times[-1] - times[-2] == pytest.approx(0.8 * headers, rel=0.05)


@pytest.mark.slow
@needs_root
def test_a_cell_is_measured(tmp_path):
  if why := _why_not():
    pytest.skip(why)
  flags = '--rates=loopback --methods=nuqsgd4 --model=mlp270k --n=2 --steps=1'
  more = f'--rounds=1 --batch_size=1 --out={tmp_path}'
  assert laboratory.main([*flags.split(), *more.split()]) == 0
  (cell,) = kept.read_lines(tmp_path / 'cells.jsonl')
  assert cell['method'] == 'nuqsgd4' and set(cell['parts']) == {
    *('full', 'compute', 'codec', 'encode', 'messages', 'empty')
  }


@pytest.mark.slow
@needs_root
def test_a_worker_that_is_killed_ends_the_run(tmp_path):
  if why := _why_not():
    pytest.skip(why)
  die = [sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)']
  sleep = [sys.executable, '-c', 'import time; time.sleep(600)']
  with pytest.raises(running.Failed, match='process 1 ended with SIGKILL'):
    with namespaces.network(2, namespaces.Link(None)) as network:
      running.run(network, [sleep, die], tmp_path, 60)
  assert not _ours()
  with pytest.raises(running.Failed, match='not done after 1 s'):
    with namespaces.network(2, namespaces.Link(1e7)) as network:
      running.run(network, [sleep, sleep], tmp_path, 1)
  assert not _ours()


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize(
  'number, status', [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)]
)
@pytest.mark.usefixtures('heeding')
def test_an_owner_that_is_asked_to_end_leaves_nothing(tmp_path, number, status):
  if why := _why_not():
    pytest.skip(why)
  owner, names = _owner(tmp_path)
  owner.send_signal(number)
  assert owner.wait(30) in (status, 1, 130)
  assert not set(names) & set(namespaces.existing())


@pytest.mark.slow
@needs_root
def test_what_a_killed_owner_leaves_is_cleaned_up(tmp_path):
  if why := _why_not():
    pytest.skip(why)
  owner, names = _owner(tmp_path)
  assert set(names) <= set(namespaces.existing())
  owner.kill()
  owner.wait(30)
  assert set(names) <= set(namespaces.clean())
  assert not set(names) & set(namespaces.existing())
  assert not any((namespaces.HOSTS / name).exists() for name in names)


@pytest.mark.slow
@needs_root
def test_a_namespace_knows_the_host_by_its_own_address(tmp_path):
  if why := _why_not():
    pytest.skip(why)
  ask = 'import socket; print(socket.gethostbyname(socket.gethostname()))'
  commands = [[sys.executable, '-c', ask]] * 2
  with namespaces.network(2, namespaces.Link(1e9)) as network:
    running.run(network, commands, tmp_path, 60)
    said = [(tmp_path / f'process_{i}.txt').read_text() for i in range(2)]
    assert tuple(text.strip() for text in said) == network.addresses
  assert socket.gethostname()


def _owner(tmp_path):
  owner = subprocess.Popen(
    [sys.executable, '-c', OWNER, str(tmp_path)],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    cwd=ROOT,
    start_new_session=True,
  )
  names = owner.stdout.readline().split()
  owner.stdout.close()
  time.sleep(0.5)
  assert len(names) == 2
  return owner, names


def _ours():
  mark = f'{namespaces.PREFIX}-{os.getpid()}-'
  return [name for name in namespaces.existing() if name.startswith(mark)]
