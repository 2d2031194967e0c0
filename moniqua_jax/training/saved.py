"""A run that was saved: how good it is, and its mean model for others to load.

Nothing is trained, and nothing is written into the folder of the run.
"""

import inspect
import json
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from moniqua_jax.training import (
  checkpoint,
  evaluation,
  experiment,
  metrics,
  registry,
  same_run,
  whole,
)
from moniqua_jax.training import step as step_lib
from moniqua_jax.training import workdir as workdir_lib

README = """\
# A mean model of {workers} workers

`{model}` on `{data}`, {size:,} parameters, after step {step} of a run
of moniqua_jax {version}. In this folder:

```python
import os

{import_}
import orbax.checkpoint as ocp

model = {call}
variables = ocp.StandardCheckpointer().restore(os.path.abspath('variables'))
outputs = model.apply(variables, inputs, train=False)  # inputs: {inputs}
```
"""
SYMBOLS = """
Symbol k is character k of `json.load(open('symbols.json'))`.
"""


class Saved(NamedTuple):
  """The last checkpoint of a run.

  Attributes:
    experiment: what the run was.
    step: of the checkpoint.
    state: a `TrainState` in NumPy, without the optimizer's.
  """

  experiment: experiment.Experiment
  step: int
  state: step_lib.TrainState


def opened(config, workdir: str) -> Saved:
  """Reads the last checkpoint that is intact, of a run on the same data."""
  of = experiment.from_config(config)
  noted = workdir_lib.noted(workdir).get('data', {})
  flag = f'--workdir={workdir}'
  same_run.check_data(noted, of.marks(), flag)
  rows = of.setup.pod.devices
  step, state = checkpoint.last(pathlib.Path(workdir), rows, '--workdir')
  statistics = state.get('model_state') or {}
  return Saved(of, step, step_lib.TrainState(state['params'], (), statistics))


def evaluated(run: Saved) -> dict:
  """Tests the mean model and the workers, as at the end of a run."""
  *_, eval_step = step_lib.make_steps(run.experiment)
  row = evaluation.make(run.experiment, eval_step)(run.state, last=True)
  epoch = run.step / run.experiment.pace.steps_per_epoch
  return metrics.plain({'step': run.step, 'epoch': epoch, **row})


def export(run: Saved, folder: str) -> str:
  """Writes the mean model as orbax does, and how to load it; returns that."""
  if not folder:
    raise ValueError('--export is empty; it takes a folder.')
  path = pathlib.Path(folder)
  workdir_lib.require_plain('--export', path)
  if path.exists() and (path.is_file() or any(path.iterdir())):
    raise ValueError(f'--export={folder} holds something; name another folder.')
  variables = evaluation.mean_model(run.experiment, run.state)
  path.mkdir(parents=True, exist_ok=True)
  with checkpoint.of_the_disk(path), ocp.StandardCheckpointer() as writer:
    writer.save(
      path.absolute() / 'variables', jax.tree.map(np.asarray, variables)
    )
  about, text = run.experiment.data.dataset.text, _readme(run, variables)
  if about and isinstance(about.symbols[0], str):
    whole.write(path / 'symbols.json', json.dumps(''.join(about.symbols)))
    text += SYMBOLS
  whole.write(path / 'README.md', text)
  return text


def _readme(run: Saved, variables) -> str:
  config, task = run.experiment.setup.config, run.experiment.task
  import_, call = _call(config.model, run.experiment.data.dataset.num_classes)
  inputs = jax.eval_shape(lambda: task.inputs(task.example(1)))
  shape = ', '.join(['B', *map(str, inputs.shape[1:])])
  return README.format(
    workers=config.workers,
    model=config.model.name,
    data=config.data.name,
    size=sum(leaf.size for leaf in jax.tree.leaves(variables['params'])),
    step=run.step,
    version=workdir_lib.provenance()['versions']['moniqua_jax'],
    import_=import_,
    call=call,
    inputs=f'{inputs.dtype}[{shape}]',
  )


def _call(spec, classes: int) -> tuple[str, str]:
  """Writes the import of a model's factory, and the call that builds it."""
  takes = inspect.signature(
    registry.found(registry.MODELS, 'model', spec.name)
  ).parameters
  # A dict of one's own would be written as YAML.
  entries: dict[str, Any] = spec.to_dict()
  module, _, name = entries.pop('name').rpartition(':')
  given = {k: v for k, v in entries.items() if v is not None}
  if 'num_classes' in takes:
    given = {'num_classes': classes} | given
  arguments = ', '.join(f'{k}={value!r}' for k, value in given.items())
  import_ = f'from {module or "moniqua_jax.models"} import {name}'
  own = f'# {module} is looked for on PYTHONPATH\n' if module else ''
  return own + import_, f'{name}({arguments})'
