"""The tests are tested: each named one-line mutation must turn its test red.

A mutation is a text replacement in a copy of the package; the named test runs against the copy in a process of
its own. The unchanged copy passes them all, so red means the mutation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import prunecli

HERE = Path(__file__).parent
PACKAGE = Path(prunecli.__file__).parent


@dataclass(frozen=True)
class Mutant:
    """One line that is wrong, and the test that says so."""

    file: str
    line: str
    wrong: str
    test: str


STRIP = "surgery/test_strip.py"
MUTANTS = {
    "slicing is a no-op": Mutant(
        "surgery/apply.py",
        "            tensor = tensor.index_select(dim, places)",
        "            pass",
        f"{STRIP}::test_zero_constants_go_without_a_trace",
    ),
    "keep and drop are swapped": Mutant(
        "surgery/apply.py",
        "known[row] = stays[slot.channels].nonzero()[0]",
        "known[row] = removed[slot.channels].nonzero()[0]",
        f"{STRIP}::test_dead_channels_are_those_nobody_reads",
    ),
    "buffers keep their length": Mutant(
        "surgery/apply.py",
        "range(tensor.ndim) if (name, dim) in kept]",
        'range(tensor.ndim) if (name, dim) in kept and "running" not in name]',
        f"{STRIP}::test_zero_constants_go_without_a_trace",
    ),
    "grouped rows may be uneven": Mutant(
        "graph/rules/convolution.py",
        "    book.filter_groups(rows.ids.reshape(groups, -1))\n    if bias",
        "    if bias",
        "graph/test_channels.py::test_grouped_rows_keep_equal_counts",
    ),
    "every process has a memory bank of its own": Mutant(
        "methods/pretext.py",
        "places, new = of_all(own), of_all(found.detach())",
        "places, new = own, found.detach()",
        "train/test_parallel.py::test_a_memory_bank_is_that_of_all_processes",
    ),
    "every process measures time for itself": Mutant(
        "cost/latency.py",
        "of_first(lambda: _turns(runs, device, seconds, least))",
        "_turns(runs, device, seconds, least)",
        "train/test_parallel.py::test_all_continue_where_one_knows_of_a_restart",
    ),
    "states go before the output is written": Mutant(
        "pipeline/training.py",
        "self._done if rank() == 0 else 0",
        "self._done",
        "pipeline/test_resume.py::test_the_process_that_writes_forgets_the_states",
    ),
    "an index leaves its folder": Mutant(
        "checkpoint/folder.py",
        "any(Path(str(n)).name != n for n in names.values())",
        "False",
        "checkpoint/test_read.py::test_an_index_stays_in_its_folder",
    ),
    "addresses of an earlier attempt are read": Mutant(
        "collectives.py",
        "store=_unwritten(store)",
        "store=store",
        "train/test_parallel.py::test_nobody_is_called_where_it_died",
    ),
    "padding is forgotten when constants fold": Mutant(
        "surgery/strip.py",
        "    if not any(op.args[4]):\n",
        "    if True:\n",
        f"{STRIP}::test_one_constant_channel_stays_under_zero_padding",
    ),
    "a column is not scaled by c_i / c_k": Mutant(
        "surgery/strip.py",
        "share = (constants / take.constant[take.keeper])",
        "share = (constants / constants.clamp_min(1e-30))",
        f"{STRIP}::test_one_constant_channel_stays_under_zero_padding",
    ),
    "a border is that of the last size": Mutant(
        "surgery/border.py",
        "seen is None or seen[0] != size or",
        "seen is None or",
        "surgery/test_border.py::test_what_was_seen_last_is_used_for_nothing_else",
    ),
    "folding leaves the border as it is": Mutant(
        "surgery/fold.py",
        "(taps.detach().double() * by_row)",
        "taps.detach().double()",
        "surgery/test_border.py::test_expanded_and_folded",
    ),
    "concatenation forgets the order": Mutant(
        "graph/rules/join.py",
        "        joined.append(along(np.concatenate(parts), dim, ndim))",
        "        joined.append(along(np.concatenate(parts[::-1]), dim, ndim))",
        "graph/test_channels.py::test_concatenation_keeps_the_parts_apart",
    ),
    "magnitudes make up for nothing": Mutant(
        "surgery/apply.py",
        "        found[normed.magnitude] = g * (after / before).reshape(g.shape)",
        "        found[normed.magnitude] = g",
        "zoo/test_user_models.py::test_weight_norm_leaves_the_other_weights_as_they_are",
    ),
    "rows give back by what they had before": Mutant(
        "surgery/plan.py",
        "        lacking = count - (~removed[row[None]]).sum(axis=1)",
        "        lacking = missing[:1]",
        "graph/test_channels.py::test_rows_that_share_their_channels_give_back_no_more_than_they_must",
    ),
    "products read what is masked": Mutant(
        "surgery/select.py",
        "        few[argument] = whole * stay.repeat(times).to(whole.dtype)",
        "        few[argument] = whole",
        "zoo/test_user_models.py::test_halved_it_equals_the_masked_model[DoubleAttention]",
    ),
    "a group of a group norm goes in part": Mutant(
        "graph/rules/norm.py",
        "            book.tie(rows[:, :1], rows)\n",
        "",
        "graph/test_channels.py::test_a_group_of_a_group_norm_is_one_channel",
    ),
    "a told size does not follow": Mutant(
        "surgery/apply.py",
        "for follow in (_told_sizes, _pad_counts, _head_sizes):",
        "for follow in (_pad_counts, _head_sizes):",
        "zoo/test_user_models.py::test_the_stem_can_be_pruned",
    ),
    "folded norms keep their counts": Mutant(
        "checkpoint/journal.py",
        "if module not in folded}",
        "}",
        "surgery/test_fold.py::test_channels_are_cut_and_what_is_left_is_folded",
    ),
    "expanded channels are zero, not constant": Mutant(
        "surgery/expand.py",
        "        constant[list(candidate.kept)] = 0\n",
        "        constant[:] = 0\n",
        "surgery/test_expand.py::test_the_same_function_with_fewer_filters",
    ),
    "folding forgets the mean": Mutant(
        "surgery/fold.py",
        "    shift = (start - norm.running_mean.double()) * scale",
        "    shift = start * scale",
        "surgery/test_fold.py::test_every_kind_of_layer",
    ),
    "other heads of what is left are not noticed": Mutant(
        "surgery/trial.py",
        "        return any(a != b for a, b in zip(self.forecast.shapes[old], self.tape.shapes[new], strict=False))",
        "        return False",
        "surgery/test_attention.py::test_other_heads_of_what_is_left_are_noticed",
    ),
    "a number that follows the width comes true": Mutant(
        "graph/follow.py",
        "        return kind is type(here) and bool(told == here)",
        "        return True",
        "graph/test_follow.py::test_what_differs_is_seen[scaled]",
    ),
    "two operands may change places": Mutant(
        "graph/follow.py",
        "self._number_of.get(id(here)) == told.index",
        "True",
        "graph/test_follow.py::test_what_differs_is_seen[swapped]",
    ),
    "a shape need not come true": Mutant(
        "graph/follow.py",
        "            if number in self._seen and tensor.shape != self._shapes[number]:",
        "            if False:",
        "graph/test_follow.py::test_sizes_are_those_that_are_asked",
    ),
    "every op is taken to be plain": Mutant(
        "surgery/forecast.py",
        "            return op.name in PLAIN\n",
        "            return True\n",
        "surgery/test_forecast.py::test_what_may_take_channels_in_another_order_is_inspected",
    ),
    "rows that take turns may lose other places": Mutant(
        "surgery/forecast.py",
        "(stays.any(turns) != stays.all(turns)).any()",
        "False",
        "surgery/test_forecast.py::test_rows_that_take_turns_lose_the_same_places",
    ),
    "unequal parts are plain": Mutant(
        "surgery/forecast.py",
        "        if before == after or op.name not in SPLITS:",
        "        if True:",
        "surgery/test_forecast.py::test_heads_and_equal_parts_are_plain",
    ),
    "tapes show torch's own attention": Mutant(
        "graph/tape.py",
        "    in_parts(parts)\n",
        "",
        "surgery/test_attention.py::test_a_tape_shows_its_products_and_narrower_heads_follow_it",
    ),
    "batch norm leaves an empty tensor on tapes": Mutant(
        "graph/tape.py",
        "    in_one_op(parts)\n",
        "",
        "graph/test_norms.py::test_it_is_the_op_that_torch_calls",
    ),
    "batch norm takes any number of dims": Mutant(
        "graph/norms.py",
        "        self._check_input_dim(input)  # type: ignore[no-untyped-call]\n",
        "",
        "graph/test_norms.py::test_it_refuses_what_torch_refuses",
    ),
    "the first operand does not say which dim lies inside": Mutant(
        "graph/broadcasting.py",
        "                return here - there",
        "                return 0",
        "graph/test_shapes.py::test_the_order_in_memory",
    ),
    "a scale may follow the width": Mutant(
        "surgery/trial.py",
        "                if numbers != others:",
        "                if False:",
        "surgery/test_attention.py::test_a_scale_that_follows_the_width_is_noticed",
    ),
    "a size that follows that of another tensor is not noticed": Mutant(
        "surgery/trial.py",
        "for pair in values if pair[0] in used",
        "for pair in values if pair[0] in used and pair[0] not in self.channels.labels",
        "zoo/test_user_models.py::test_random_cuts_run[WrittenRow]",
    ),
    "layers that share a number lose other counts": Mutant(
        "graph/channels.py",
        "        book.equal_counts(np.concatenate(rows))\n",
        "        pass\n",
        "pipeline/test_in_memory.py::test_one_number_for_several_layers",
    ),
    "a sum may see how often a value is repeated": Mutant(
        "graph/rules/repetition.py",
        "    return all(_is_blind(call, op, index, axis) for op in readers) and all(\n",
        "    return all(\n",
        "zoo/test_user_models.py::test_halved_it_equals_the_masked_model[CountedChannels]",
    ),
    "other channels in a part are not noticed": Mutant(
        "surgery/trial.py",
        "            if self._known(stay) != self._known(here):",
        "            if False:",
        "zoo/test_user_models.py::test_halved_it_equals_the_masked_model[InPlacePart]",
    ),
    "tensors without a device make the trace need data": Mutant(
        "graph/tape.py",
        '        with torch.device("meta"):',
        '        with torch.device("cpu"):',
        "graph/test_tape.py::test_a_tensor_without_a_device_needs_no_data",
    ),
    "a transposed weight takes constants over along the wrong dim": Mutant(
        "graph/channels.py",
        "return (name, dims[read.b_label.axis])",
        "return (name, read.b_label.axis)",
        "surgery/test_random_sequences.py::test_every_block_alone",
    ),
    "ERK without the kernel": Mutant(
        "cost/allocation.py",
        "sum(shape) / math.prod(shape)",
        "sum(shape[:2]) / math.prod(shape[:2])",
        "cost/test_allocation.py::test_erk_densities_have_the_ratio_of_the_papers_formula",
    ),
    "a measured figure above the limit counts as met": Mutant(
        "pipeline/limits.py",
        "        if figure <= limit.amount:\n",
        "        if figure <= 1.2 * limit.amount:\n",
        "pipeline/test_budgets.py::test_a_wrong_model_of_the_cost_is_corrected",
    ),
    "a sum over several dims knows the last of them alone": Mutant(
        "surgery/select.py",
        "        by_op.setdefault(each.op, []).append(each)",
        "        by_op[each.op] = [each]",
        "surgery/test_through_norms.py::test_a_sum_over_channels_and_places_is_of_the_channels_that_stay",
    ),
    "a channel that is not zero where it is summed up goes": Mutant(
        "surgery/strip.py",
        "        removed[channels.of(end.label.rows())[values != 0]] = False",
        "        pass",
        "zoo/test_user_models.py::test_a_dead_channel_goes_where_zero_is_summed_and_stays_elsewhere",
    ),
    "a sum reads what is masked": Mutant(
        "surgery/select.py",
        "_by_op([*ends, *channels.sums])",
        "_by_op(ends)",
        "zoo/test_user_models.py::test_halved_it_equals_the_masked_model[GraphAttention]",
    ),
    "what is tried keeps the numbers of the uncut model": Mutant(
        "surgery/apply.py",
        "    _fit(smaller, channels, removed)\n    return smaller\n",
        "    return smaller\n",
        "zoo/test_user_models.py::test_what_is_tried_has_the_shapes_and_numbers_of_the_cut[Glu]",
    ),
    "of equal sizes any is that of the channels": Mutant(
        "graph/channels.py",
        "    _drop_fixed_sizes(book, channel_of)\n",
        "",
        "zoo/test_user_models.py::test_inner_channels_can_be_pruned",
    ),
    "a buffer that is divided by is zero in the masked model": Mutant(
        "surgery/apply.py",
        "writers = tensors if read.b in of_inputs else parameters",
        "writers = tensors",
        "zoo/test_user_models.py::test_halved_it_equals_the_masked_model[Splines]",
    ),
    "kernels come before budgets": Mutant(
        "cost/budget.py",
        "        if self.channels.filters and not self._is_close(removed):",
        "        if False:",
        "cost/test_budget.py::test_a_grouped_convolution_is_as_wide_as_the_budget_says",
    ),
    "kernels do not get the widths that they demand": Mutant(
        "surgery/plan.py",
        "            changed |= _raise_to(min(multiple, len(row)), row[None], removed, rank)",
        "            pass",
        "surgery/test_experts.py::test_widths_fill_what_the_kernel_steps_by",
    ),
    "all tokens are alike": Mutant(
        "graph/examples.py",
        "    return picked if rows and takes(module, picked) else example",
        "    return example",
        "graph/test_examples.py::test_experts_that_token_zero_does_not_meet_are_cut_as_well",
    ),
    "weights keep their strides": Mutant(
        "graph/tensors.py",
        "            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)",
        "            pass",
        "pipeline/test_in_memory.py::test_weights_may_lie_in_memory_in_any_order",
    ),
    "outputs are always the first dim": Mutant(
        "graph/channels.py",
        "        return [dim for dim in dims if dim not in read] or [0]",
        "        return [0]",
        "graph/test_channels.py::test_outputs_lie_along_what_is_not_summed_over",
    ),
    "verify says true": Mutant(
        "surgery/verify.py",
        "    if result.max_rel_error > TOLERANCE[dtype]:",
        "    if False:",
        "pipeline/test_prune.py::test_what_is_not_equal_is_not_written",
    ),
    "the budget is met from above": Mutant(
        "cost/budget.py",
        "            if self._cost(self._remove(order, middle)) <= self.limit:",
        "            if self._cost(self._remove(order, middle)) <= self.limit * 1.1:",
        "cost/test_budget.py::test_met_from_below",
    ),
    "the file is written in place": Mutant(
        "checkpoint/write.py",
        '    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")',
        "    handle, temporary = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), str(path)",
        "checkpoint/test_write.py::test_an_exception_leaves_the_old_file",
    ),
    "the journal forgets the first cut": Mutant(
        "checkpoint/journal.py",
        "kept[key] = indices if first is None else tuple(first[i] for i in indices)",
        "kept[key] = indices",
        "checkpoint/test_journal.py::test_two_cuts_are_one",
    ),
    "pickles are trusted": Mutant(
        "checkpoint/read.py",
        'return torch.load(path, map_location="cpu", weights_only=not trust), None',
        'return torch.load(path, map_location="cpu", weights_only=False), None',
        "checkpoint/test_read.py::test_a_hostile_pickle_is_not_executed",
    ),
    "buffers that no file holds stay wide": Mutant(
        "pipeline/operate.py",
        "for name, tensor in named_tensors(module):  # buffers that no file holds included",
        "for name, tensor in module.state_dict(keep_vars=True).items():",
        "zoo/test_user_models.py::test_from_a_module_to_a_file_and_back[FollowingBuffer]",
    ),
    "buffers that no file holds keep their dtype in half precision": Mutant(
        "model.py",
        "    return _converted(module, *dtypes) if len(dtypes) == 1 else module",
        "    return module",
        "checkpoint/test_read.py::test_buffers_that_are_not_stored_follow_the_dtype_of_the_file",
    ),
    "what is drawn is drawn anew": Mutant(
        "graph/examples.py",
        "        torch.default_generator.manual_seed(seed)",
        "        torch.default_generator.seed()",
        "surgery/test_verify.py::test_what_torch_draws_is_the_same_for_both",
    ),
    "training may leave widths that do not run": Mutant(
        "methods/widths.py",
        "    for numbers in (one_of_each, uneven):",
        "    for numbers in ():",
        "methods/test_gumbel.py::test_widths_that_no_training_can_promise_are_whole_from_the_start",
    ),
    "widths that do not run are timed": Mutant(
        "cost/latency.py",
        "        channels = settle(module, example, channels, _narrowed(channels, share))",
        "        pass",
        "cost/test_latency.py::test_widths_that_would_break_the_model_are_not_tried",
    ),
    "optimizer states are weights": Mutant(
        "pipeline/figures.py",
        "    return stored if stored <= BULKY * tensors else tensors",
        "    return stored",
        "pipeline/test_budgets.py::test_what_lies_beside_the_weights_is_no_part_of_the_size",
    ),
    "rows of other images are fitted": Mutant(
        "surgery/recover.py",
        "            if [_places(old, was) for was in before] != [_places(new, x) for x in now]:",
        "            if not before:",
        "surgery/test_recover.py::test_experts_that_read_other_rows_after_a_cut_are_left_as_they_are",
    ),
    "what a report needs is missed after the work": Mutant(
        "pipeline/prune.py",
        "    extras = Extras.prepared(recipe, opened, images)",
        "    extras = Extras(recipe, opened, images, None)",
        "methods/test_selfsup.py::test_what_a_report_needs_is_missed_before_the_work",
    ),
    "thirds are evened out without their heads": Mutant(
        "graph/blocks.py",
        "        if NONE in parts:",
        "        if True:",
        "surgery/test_attention.py::test_thirds_of_heads_keep_as_many_as_the_widest_head",
    ),
    "what cannot get narrower is called free": Mutant(
        "graph/blocks.py",
        "            if whole.any() and not whole.all():",
        "            if False:",
        "graph/test_channels.py::test_what_must_be_as_wide_as_something_frozen_is_frozen",
    ),
    "kernels decide what is possible": Mutant(
        "cost/budget.py",
        "        search, order = self._freer(), self._order()",
        "        search, order = self, self._order()",
        "cost/test_budget.py::test_kernels_do_not_decide_what_is_possible",
    ),
    "complex numbers lose a part": Mutant(
        "graph/tensors.py",
        "            return tensor.to(_COMPLEX.get(dtype))",
        "            return tensor.to(dtype)",
        "pipeline/test_in_memory.py::test_complex_weights_are_left_out_of_sparsity_and_keep_both_parts",
    ),
    "integers are put where floats belong": Mutant(
        "surgery/assign.py",
        '    return "complex numbers" if tensor.is_complex() else "integers"',
        '    return "floats"',
        "checkpoint/test_read.py::test_numbers_of_another_kind_are_refused",
    ),
    "lazy layers keep the width of nothing": Mutant(
        "graph/lazy.py",
        "    return any(isinstance(part, LazyModuleMixin) for part in module.modules())",
        "    return False",
        "graph/test_lazy.py",
    ),
    "a number by itself is written as a shape": Mutant(
        "inputs.py",
        '        dtype = self.dtype or (OWN if len(self.shape) < 2 else "")',
        "        dtype = self.dtype",
        "test_inputs.py::test_numbers_beside_images",
    ),
    "inference mode hides ops": Mutant(
        "graph/tape.py",
        "if kind.composite and torch.is_inference_mode_enabled():",
        "if False:",
        "graph/test_tape.py::test_inference_mode_hides_nothing",
    ),
    "an average is one of the start": Mutant(
        "train/loop.py",
        "decay = min(limit, (1 + int(count)) / (10 + int(count)))",
        "decay = limit",
        "train/test_loop.py::test_an_average_of_a_short_run_is_none_of_its_start",
    ),
    "each part of a training starts over": Mutant(
        "train/order.py",
        "number, position = divmod(self._before + step, self.per_epoch)",
        "number, position = divmod(step, self.per_epoch)",
        "train/test_order.py::test_parts_of_a_training_see_what_the_whole_sees",
    ),
    "training goes on to the end of an epoch": Mutant(
        "train/order.py",
        "[position:][: self.steps - step]",
        "[position:]",
        "train/test_order.py::test_parts_of_a_training_see_what_the_whole_sees",
    ),
    "a part of an epoch after each step is forgotten": Mutant(
        "pipeline/steps.py",
        "epochs = settings.epochs / parts",
        "epochs = settings.epochs // parts",
        "pipeline/test_prune.py::test_each_step_has_its_part_of_an_epoch",
    ),
    "batch norms are never folded": Mutant(
        "pipeline/steps.py",
        "        if not self.recipe.strip.fold_batchnorm:\n            return way",
        "        if True:\n            return way",
        "surgery/test_fold.py::test_what_wins_accuracy_back_still_has_its_batch_norms",
    ),
    "what a GPU has no memory for is tried there again": Mutant(
        "device.py",
        'return work(torch.device("cpu"))',
        "return work(device)",
        "test_device.py::test_what_does_not_fit_a_device_is_computed_on_the_cpu",
    ),
    "who else reads a weight is not asked": Mutant(
        "graph/tape.py",
        " and module not in lent:",
        ":",
        "surgery/test_lent.py::test_they_are_not_expanded_folded_or_gated",
    ),
    "what others read is fitted": Mutant(
        "surgery/recover.py",
        " | record(dense, Example((next(iter(images())),))).lent()",
        "",
        "surgery/test_lent.py::test_they_are_not_fitted",
    ),
    "initialisers that are called by keyword run": Mutant(
        "arch/registry.py",
        'args[0] if args else kwargs.get("tensor")',
        "args[0] if args else None",
        "arch/test_guess.py::test_what_is_built_to_be_looked_at_is_not_initialised",
    ),
    "all processes share the first GPU": Mutant(
        "device.py",
        'f"cuda:{local_rank()}"',
        '"cuda:0"',
        "test_device.py::test_auto_is_the_gpu_where_there_is_one_and_each_process_has_its_own",
    ),
    "a network goes on naming its GPU": Mutant(
        "graph/copying.py",
        "setattr(part, name, str(place) if isinstance(value, str) else place)",
        "pass",
        "test_device.py::test_a_network_that_says_its_gpu_runs_where_its_weights_are",
    ),
}


def outcome(package: Path, test: str) -> int:
    """pytest's exit status: 0 green, 1 red."""
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PRUNECLI_PACKAGE": str(package)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", str(HERE / test)]
    return subprocess.run(command, env=environment, capture_output=True, cwd=package.parent, check=False).returncode


def copy(folder: Path) -> Path:
    package = folder / "prunecli"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


@pytest.mark.slow
def test_the_unchanged_copy_is_green(tmp_path: Path) -> None:
    package = copy(tmp_path)
    assert [m.test for m in MUTANTS.values() if outcome(package, m.test) != 0] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_turn_red(name: str, tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    package = copy(tmp_path)
    source = (package / mutant.file).read_text()
    assert source.count(mutant.line) == 1, "the line has changed; bring the mutant up to date"
    (package / mutant.file).write_text(source.replace(mutant.line, mutant.wrong))
    assert outcome(package, mutant.test) == 1


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_up_to_date(name: str) -> None:
    mutant = MUTANTS[name]
    assert (PACKAGE / mutant.file).read_text().count(mutant.line) == 1
    assert (HERE / mutant.test.partition("::")[0]).is_file()
