"""Changes to ms-swift where it has no hook, each with what, why, and when it can go. Written against 4.6.

`apply` is idempotent. Everything else that this package does goes through ms-swift's registries and subclasses.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import wraps

from swift.utils import get_logger

from .dataset import ROW_NUMBER, pack_mask_column

logger = get_logger()
_MARK = "_himtok_patched"


def apply() -> None:
    """Apply all patches, once per process."""
    from swift.template import Template

    if getattr(Template, _MARK, False):
        return
    _keep_mask_columns()
    _compose_templates()
    _extend_models()
    _train_mask_rows()
    _mark_image_tokens_of_gemma3()
    _join_features_of_gemma4()
    _choose_trainers()
    _shard_on_cpus()
    _save_sidecars()
    _save_whole_models()
    _constrain_engines()
    _attach_masks_to_responses()
    _write_masks_to_results()
    _serve_segments()
    _hand_on_text_at_masks()
    _end_streams_that_fail()
    _sample_with_masks_of_questions()
    _evaluate_without_opencompass()
    setattr(Template, _MARK, True)


def _keep_mask_columns() -> None:
    """What: rows pass `pack_mask_column` before ms-swift's preprocessing, and `masks` survives it.
    Why: `standard_keys` decides which columns survive, but nothing lets a plugin see a raw row of any dataset.
    Goes when: preprocessors can be registered to run before the automatic one.
    """
    from datasets import Features, IterableDataset, Value
    from swift.dataset import AutoPreprocessor, RowPreprocessor

    if "masks" not in RowPreprocessor.standard_keys:
        RowPreprocessor.standard_keys.append("masks")
    # ms-swift's caches are named after the input alone: rows cached without masks must not be taken for ours.
    RowPreprocessor.cache_format_version += "_himtok1"
    prepare, batched, choose = (
        RowPreprocessor.prepare_dataset,
        RowPreprocessor.batched_preprocess,
        AutoPreprocessor._get_preprocessor,
    )

    def has_masks(features) -> bool:
        return any(name in features for name in ("masks", "mask", "mask_codes"))

    @wraps(prepare)
    def prepare_dataset(self, dataset):
        dataset = prepare(self, dataset)
        features = self.get_features_dataset(dataset).features
        if not has_masks(features) or ROW_NUMBER in features:
            return dataset
        if isinstance(dataset, IterableDataset):
            # Streaming renames the known columns afterwards, so the number has to look like one of the dataset's own.
            numbered = Features({**features, ROW_NUMBER: Value("int64")})
            return dataset.map(lambda row, index: {**row, ROW_NUMBER: index + 1}, with_indices=True, features=numbered)
        dataset = dataset.add_column(ROW_NUMBER, list(range(1, len(dataset) + 1)))
        # A column of mixed kinds is one of JSON, as which `datasets` would read our string of the same name. The prefix
        # is ms-swift's own, for the same purpose.
        return dataset.rename_column("masks", "__@masks") if "masks" in features else dataset

    @wraps(batched)
    def batched_preprocess(self, batched_row, **kwargs):
        batched_row = dict(batched_row)
        self._remove_prefix_keys(batched_row, "__@")
        if has_masks(batched_row):
            rows = []
            for row in self.batched_to_rows(batched_row):
                try:
                    rows.append(pack_mask_column(row))
                except ValueError as error:
                    if kwargs.get("strict"):
                        raise
                    logger.warning(f"{error}: the row is skipped")
            batched_row = self.rows_to_batched(rows)
            if not rows:
                return {"messages": []}
        return batched(self, batched_row, **kwargs)

    @wraps(choose)
    def get_preprocessor(self, dataset):
        # Rows that hold masks only have no column that would tell.
        from swift.dataset import MessagesPreprocessor

        features = dataset.features
        asks = ("conversation", "conversations", "messages", "query", "instruction", "prompt", "question")
        if has_masks(features) and not any(name in features for name in asks):
            return MessagesPreprocessor(**self.kwargs)
        return choose(self, dataset)

    RowPreprocessor.prepare_dataset = prepare_dataset
    RowPreprocessor.batched_preprocess = batched_preprocess
    AutoPreprocessor._get_preprocessor = get_preprocessor


def _compose_templates() -> None:
    """What: the template class that ms-swift chose for a multimodal base gets `MaskTemplateMixin` in front.
    Why: a plugin can register templates by name, but the user should not have to name another one per base.
    Goes when: templates can be extended without naming them.
    """
    import swift.arguments.base_args.base_args as base_args
    import swift.template as package
    import swift.template.register as register

    from .template import with_masks

    original = register.get_template_meta

    @wraps(original)
    def get_template_meta(model_info, model_meta, template_type=None):
        from copy import copy

        meta = original(model_info, model_meta, template_type)
        if model_meta is None or not model_meta.is_multimodal:
            return meta
        meta = copy(meta)
        meta.template_cls = with_masks(meta.template_cls)
        return meta

    register.get_template_meta = get_template_meta
    for module in (base_args, package):
        if getattr(module, "get_template_meta", None) is original:
            module.get_template_meta = get_template_meta


def _extend_models() -> None:
    """What: `extend_loaded_model` runs after ms-swift added its own new special tokens.
    Why: `--new_special_tokens` adds special ones only, which servers strip from their output.
    Goes when: model loaders take a callback.
    """
    from swift.model.register import ModelLoader

    from .model import extend_loaded_model

    original = ModelLoader._add_new_special_tokens

    @wraps(original)
    def _add_new_special_tokens(self, model, processor, config):
        original(self, model, processor, config)
        extend_loaded_model(self, model, processor, config)

    ModelLoader._add_new_special_tokens = _add_new_special_tokens


def _train_mask_rows() -> None:
    """What: adapters train and save the mask tokens' rows of the embeddings as well.
    Why: ms-swift builds PEFT's configuration from its own flags, without `trainable_token_indices`.
    Goes when: that is one of them.
    """
    from swift.pipelines.train.tuner import TunerMixin

    from .adapters import check_rows_are_whole, keep_embeddings_out, train_mask_rows
    from .inference import runtime_of
    from .model import lm_of

    original = TunerMixin.prepare_model.__func__

    @wraps(original)
    def prepare_model(cls, args, model, *, template=None, **kwargs):
        runtime = None if template is None else runtime_of(template)
        owner = None if runtime is None else lm_of(model, args.model_meta)
        model = original(cls, args, model, template=template, **kwargs)
        if runtime is not None and args.is_adapter:
            if not (args.resume_from_checkpoint or args.adapters):
                train_mask_rows(model, owner, runtime.vocabulary, runtime.rows_are_new)
            check_rows_are_whole(model)
            keep_embeddings_out(model)
        return model

    TunerMixin.prepare_model = classmethod(prepare_model)


def _mark_image_tokens_of_gemma3() -> None:
    """What: Gemma 3's image tokens, and no other, are of the type of those that see each other.
    Why: ms-swift asks the processor for their id, which in transformers 5.19 answers with the token before them: images
    would be read from left to right here, as they were in no training before and are by no other engine.
    Goes when: ms-swift asks the text tokenizer.
    """
    from swift.template.templates.gemma import Gemma3VisionTemplate

    original = Gemma3VisionTemplate._encode

    @wraps(original)
    def _encode(self, inputs):
        encoded = original(self, inputs)
        image_token_id = self.tokenizer.image_token_id
        encoded["token_type_ids"] = [int(token == image_token_id) for token in encoded["input_ids"]]
        return encoded

    Gemma3VisionTemplate._encode = _encode


def _join_features_of_gemma4() -> None:
    """What: Gemma 4's features of several images or videos come as one tensor.
    Why: ms-swift's own forward pass of Gemma 4, written against transformers 5.6, expects that; 5.19 gives one each.
    Goes when: ms-swift's joins them.
    """
    import swift.model.models.gemma as gemma
    import torch

    original = gemma._patch_gemma4_forward

    def joined(get_features):
        @wraps(get_features)
        def get_joined_features(*args, **kwargs):
            output = get_features(*args, **kwargs)
            if isinstance(output.pooler_output, (tuple, list)):
                output.pooler_output = torch.cat(tuple(output.pooler_output))
            return output

        return get_joined_features

    @wraps(original)
    def _patch_gemma4_forward(model, *args, **kwargs):
        original(model, *args, **kwargs)
        for name in ("get_image_features", "get_video_features"):
            setattr(model, name, joined(getattr(model, name)))

    gemma._patch_gemma4_forward = _patch_gemma4_forward


def _choose_trainers() -> None:
    """What: causal-LM training of a base with masks runs `MaskTrainer`, that of a mask tokenizer `StageOneTrainer`.
    Why: the factory maps task types, and both are of the same.
    Goes when: the factory asks the model type.
    """
    from swift.trainers import TrainerFactory

    from .model import trained_by_mask_trainer

    original = TrainerFactory.get_trainer_cls.__func__

    def get_trainer_cls(cls, args):
        trainer_class = original(cls, args)
        if not trained_by_mask_trainer(args):
            return trainer_class
        from .stage_one import MODEL_TYPE, StageOneTrainer
        from .trainer import MaskTrainer

        if args.model_meta.model_type == MODEL_TYPE:
            return StageOneTrainer
        return MaskTrainer if args.model_meta.is_multimodal else trainer_class

    TrainerFactory.get_trainer_cls = classmethod(get_trainer_cls)


def _shard_on_cpus() -> None:
    """What: FSDP shards on CPUs as well.
    Why: accelerate knows it on accelerators only; on CPUs it goes on with DDP and says nothing.
    Goes when: accelerate does it, or refuses.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    @wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
            return
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if self._mixed_precision != "no":
            plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = plugin

    AcceleratorState.__init__ = __init__


def _save_sidecars() -> None:
    """What: every checkpoint of every trainer, and what `swift export` writes, gets the mask tokenizer beside it.
    Why: a callback's `on_save` sees sharded parameters ungathered, `template.save_callback` replaces the whole saving.
    Goes when: there is a hook that is given the gathered weights.
    """
    from importlib import import_module

    from swift.trainers.mixin import SwiftMixin

    from ..mask_tokenizer.conversion import SIDECAR_FOLDER
    from .model import save_sidecar

    def with_sidecar(save):
        @wraps(save)
        def save_checkpoint(model, processor, output_dir, **kwargs):
            save(model, processor, output_dir, **kwargs)
            if model is not None:
                save_sidecar(model, output_dir, None)
                # The same answers as before, so their calibration holds; after training it would not.
                runtime = getattr(getattr(processor, "tokenizer", processor), "himtok", None)
                if runtime is not None and runtime.calibration is not None:
                    runtime.calibration.save(os.path.join(output_dir, SIDECAR_FOLDER))

        return save_checkpoint

    # By name, since the package has functions of the modules' names.
    for name in ("merge_lora", "quant"):
        module = import_module(f"swift.pipelines.export.{name}")
        module.save_checkpoint = with_sidecar(module.save_checkpoint)
    original = SwiftMixin._save

    @wraps(original)
    def _save(self, output_dir=None, state_dict=None):
        # A copy, from which transformers deletes what the LMM's files are not to hold.
        original(self, output_dir, None if state_dict is None else dict(state_dict))
        save_sidecar(self.model, output_dir or self.args.output_dir, state_dict)

    SwiftMixin._save = _save


def _save_whole_models() -> None:
    """What: checkpoints of FSDP have the model's own files and the mask tokenizer, beside each process's shards.
    Why: with `SHARDED_STATE_DICT`, which `--fsdp fsdp2` means, there are shards only, which nothing but a resumed run
    can read.
    Goes when: ms-swift writes a model (its issue 8198).
    """
    from swift.trainers.mixin import SwiftMixin

    from .model import find_attached
    from .sharding import gathered_weights

    def save_model(self, output_dir=None, _internal_call=False):
        super(SwiftMixin, self).save_model(output_dir, _internal_call)  # transformers' trainer
        if not self.is_fsdp_enabled or find_attached(self.model) is None:
            return
        if "FULL_STATE_DICT" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            weights = gathered_weights(self.model)  # by all processes
            if self.args.should_save:
                self._save(output_dir or self.args.output_dir, weights)

    SwiftMixin.save_model = save_model


def _constrain_engines() -> None:
    """What: vLLM, SGLang and LMDeploy are given this run's grammar of answers with every request.
    Why: they take no logits processors from a template, and ms-swift's own option is a whole regular expression.
    Goes when: templates can change the sampling parameters of every engine.
    """
    from swift.infer_engine import InferEngine

    from .constraints import constrain_engine
    from .inference import runtime_of

    original = InferEngine.__init__

    @wraps(original)
    def __init__(self, template):
        original(self, template)
        runtime = runtime_of(template)
        if runtime is not None:
            constrain_engine(self, runtime)

    InferEngine.__init__ = __init__


def _attach_masks_to_responses() -> None:
    """What: responses of ms-swift's own engine carry their masks, refined where `--refiner` says so.
    Why: the template sees generated ids, but cannot add to the response, and a refiner wants the request's own image.
    Goes when: templates can post-process a response object.
    """
    from swift.infer_engine import TransformersEngine

    from .inference import attach_masks, runtime_of
    from .refining import refine_responses

    original, answer = TransformersEngine._infer_full, TransformersEngine._infer

    @wraps(original)
    def _infer_full(self, inputs, *, template_inputs, **kwargs):
        responses = original(self, inputs, template_inputs=template_inputs, **kwargs)
        runtime = runtime_of(self.template)
        if runtime is not None:
            attach_masks(runtime, template_inputs, responses)
        return responses

    @wraps(answer)
    def _infer(self, infer_requests, request_config, **kwargs):
        responses = answer(self, infer_requests, request_config, **kwargs)
        runtime = runtime_of(self.template)
        if runtime is not None and runtime.settings.refiner != "none" and not request_config.stream:
            refine_responses(
                runtime, infer_requests, responses, lambda more: answer(self, more, request_config, **kwargs)
            )
        return responses

    TransformersEngine._infer_full = _infer_full
    TransformersEngine._infer = _infer


def _write_masks_to_results() -> None:
    """What: `swift infer` writes `masks` into its rows, pictures into `--mask_dir`, and a card of the run; with
    `--resume_result` it goes on where it was.
    Why: the pipeline builds result rows from fixed fields of the response.
    Goes when: rows can be post-processed by a plugin.
    """
    from swift.pipelines.infer.infer import SwiftInfer

    from .inference import RESPONSE_ATTRIBUTE, MaskPictures, masks_of_text, runtime_of, without_results, write_masks
    from .run_card import leave_card

    batch_infer, infer_single = SwiftInfer._batch_infer, SwiftInfer.infer_single
    prepare_rows = SwiftInfer._prepare_val_dataset

    def pictures(pipeline) -> MaskPictures | None:
        if pipeline.args.mask_dir is None:
            return None
        if "himtok_pictures" not in pipeline.__dict__:
            pipeline.himtok_pictures = MaskPictures(pipeline.args.mask_dir, pipeline.args.rank)
        return pipeline.himtok_pictures

    @contextmanager
    def noting_responses(pipeline):
        """What the pipeline's engine answers within; of a stream that is no response."""
        noted = []

        def infer(*args, **kwargs):
            found = pipeline.infer_engine.infer(*args, **kwargs)
            noted.extend(found)
            return found

        pipeline.infer = infer
        try:
            yield noted
        finally:
            del pipeline.infer

    def masks_of(runtime, noted, text: str, row):
        """Masks that came with the response, else those of its text."""
        masks = logprobs = None
        if hasattr(noted, "choices"):
            masks = getattr(noted.choices[0].message, RESPONSE_ATTRIBUTE, None)
            logprobs = noted.choices[0].logprobs
        return masks_of_text(runtime, text, row, logprobs) if masks is None else masks

    @wraps(batch_infer)
    def _batch_infer(self, val_dataset, request_config):
        runtime = runtime_of(self.template)
        if runtime is None:
            return batch_infer(self, val_dataset, request_config)
        leave_card(self.args, runtime)
        with noting_responses(self) as noted:
            rows = batch_infer(self, val_dataset, request_config)
        for row, response in zip(rows, noted, strict=False):  # other ranks of a parallel engine write no rows
            masks = masks_of(runtime, response, row["response"], row)
            write_masks(row, masks)
            if pictures(self) is not None:
                pictures(self).write(row, masks)
        return rows

    @wraps(infer_single)
    def infer_one(self, infer_request, request_config):
        with noting_responses(self) as noted:
            text = infer_single(self, infer_request, request_config)
        runtime = runtime_of(self.template)
        if runtime is not None and isinstance(infer_request, dict):
            masks = masks_of(runtime, noted[0], text, infer_request)
            write_masks(infer_request, masks)
            if self.args.mask_dir is None and self.args.eval_human:
                self.args.mask_dir = "masks"  # who asks interactively wants to see the answer
            if masks and pictures(self) is not None:
                print("masks: " + ", ".join(pictures(self).write(infer_request, masks)))
        return text

    @wraps(prepare_rows)
    def _prepare_val_dataset(self):
        rows = prepare_rows(self)
        return without_results(rows, self.args.result_path) if self.args.resume_result else rows

    SwiftInfer._batch_infer = _batch_infer
    SwiftInfer.infer_single = infer_one
    SwiftInfer._prepare_val_dataset = _prepare_val_dataset


def _serve_segments() -> None:
    """What: chat requests to `swift deploy` may have masks, answers have segments, and a bad request fails alone, with
    status 400 and ms-swift's form of an error.
    Why: requests and answers are built from fixed fields; an error in one row of a batch is told to all of them; of the
    web framework's own form of an error the `openai` package shows nothing.
    Goes when: requests and responses can be extended, and the server isolates errors.
    """
    from http import HTTPStatus

    import swift.pipelines.infer.deploy as deploy
    from fastapi.exceptions import RequestValidationError
    from swift.infer_engine import TransformersEngine

    from .inference import runtime_of
    from .serving import (
        RECORDED_ATTRIBUTE,
        SegmentChatRequest,
        SegmentInferRequest,
        answer_with_segments,
        reason_of_refusal,
    )

    SwiftDeploy = deploy.SwiftDeploy
    register_app, infer_stream = SwiftDeploy._register_app, TransformersEngine._infer_stream

    @wraps(register_app)
    def _register_app(self):  # not `__init__`, which is what imports plugins
        register_app(self)
        self.infer_engine.strict = False
        self.app.add_exception_handler(RequestValidationError, refuse)

    async def refuse(request, error):
        return SwiftDeploy.create_error_response(HTTPStatus.BAD_REQUEST, reason_of_refusal(error.errors()))

    async def infer_async(self, infer_request, request_config=None, **kwargs):
        infer, runtime = self.infer_engine.infer_async, runtime_of(self.template)
        if runtime is None or not isinstance(infer_request, SegmentInferRequest):
            return await infer(infer_request, request_config, **kwargs)
        return await answer_with_segments(runtime, infer, infer_request, request_config, **kwargs)

    @wraps(infer_stream)
    def _infer_stream(self, *args, **kwargs):
        runtime = runtime_of(self.template)
        for chunks in infer_stream(self, *args, **kwargs):
            for i, chunk in enumerate(chunks):
                if runtime is not None and chunk is not None:
                    setattr(chunk, RECORDED_ATTRIBUTE, runtime.generation.recorded(i))
            yield chunks

    # The web framework reads a request by its annotation.
    SwiftDeploy.create_chat_completion.__annotations__["request"] = deploy.ChatCompletionRequest = SegmentChatRequest
    SwiftDeploy._register_app = _register_app
    SwiftDeploy.infer_async = infer_async
    TransformersEngine._infer_stream = _infer_stream


def _hand_on_text_at_masks() -> None:
    """What: a stream hands its text on where a mask closes, and where it is to be previewed.
    Why: ms-swift waits for a space or a line break, which masks have none of.
    Goes when: the template can say where.
    """
    from swift.infer_engine.utils import InferStreamer

    from .serving import hands_on_text

    original = InferStreamer._get_response

    @wraps(original)
    def _get_response(self, response, is_finished, token_len):
        inputs = self.decode_kwargs.get("template_inputs")
        previews = getattr(inputs, "extra_kwargs", {}).get("mask_previews") or []
        if self.first_token or is_finished or not hands_on_text(response, previews):
            return original(self, response, is_finished, token_len)
        text = response[self.print_idx :]
        self.print_idx = len(response)
        return text

    InferStreamer._get_response = _get_response


def _end_streams_that_fail() -> None:
    """What: an error that `MaskTemplateMixin.generate` puts into a stream is raised where the stream is read.
    Why: ms-swift generates on a thread of its own and waits for its tokens, after an error for ever: one request, say
    with temperature -1, would stop the server.
    Goes when: ms-swift passes errors on.
    """
    from swift.infer_engine.utils import StreamerMixin

    original = StreamerMixin.__next__

    @wraps(original)
    def __next__(self):
        value = original(self)
        if isinstance(value, Exception):
            raise value
        return value

    StreamerMixin.__next__ = __next__


def _sample_with_masks_of_questions() -> None:
    """What: in reinforcement learning, rows whose questions hold `<mask>` are sampled and trained with their masks.
    Why: ms-swift hands the template its own columns only; the others go to the reward functions.
    Goes when: a plugin can say which further columns belong to a row.
    """
    from dataclasses import dataclass, field
    from typing import Any

    import swift.infer_engine.protocol as protocol
    import swift.rl_core.data as data
    from swift.trainers import TrainerFactory

    from ..mask_text import MASK_PLACEHOLDER

    OnPolicySample = data.OnPolicySample
    to_template_dict, to_infer_request = OnPolicySample.to_template_dict, OnPolicySample.to_infer_request

    @dataclass
    class RolloutInferRequest(protocol.RolloutInferRequest):
        masks: Any = field(default_factory=list)

    @wraps(to_template_dict)
    def with_masks(self):
        masks = self.extra.get("masks")
        return {**to_template_dict(self), **({} if masks is None else {"masks": masks})}

    @wraps(to_infer_request)
    def request_with_masks(self, include_extra=False):
        request, masks = to_infer_request(self, include_extra), self.extra.get("masks")
        return request if masks is None else RolloutInferRequest(**vars(request), masks=masks)

    OnPolicySample.to_template_dict = with_masks
    OnPolicySample.to_infer_request = request_with_masks
    get_trainer_cls = TrainerFactory.get_trainer_cls.__func__

    @wraps(get_trainer_cls)
    def get_logging_trainer_cls(cls, args):
        trainer_class = get_trainer_cls(cls, args)
        log = getattr(trainer_class, "_apply_chat_template_to_messages_list", None)
        if log is not None and not hasattr(log, _MARK):
            trainer_class._apply_chat_template_to_messages_list = logging_without_masks(log)
        return trainer_class

    def logging_without_masks(log):
        # The log's questions are encoded anew, without the rest of their rows.
        @wraps(log)
        def _apply_chat_template_to_messages_list(self, messages_list):
            named = [
                [{**m, "content": m["content"].replace(MASK_PLACEHOLDER, "[mask]")} for m in messages]
                for messages in messages_list
            ]
            return log(self, named)

        setattr(_apply_chat_template_to_messages_list, _MARK, True)
        return _apply_chat_template_to_messages_list

    TrainerFactory.get_trainer_cls = classmethod(get_logging_trainer_cls)


def _evaluate_without_opencompass() -> None:
    """What: `swift eval` with evalscope's own backend, the default, asks for evalscope's own benchmarks only, and finds
    its name for a server.
    Why: ms-swift lists OpenCompass's as well, whichever backend is asked for, and fails where that is not installed;
    evalscope 1.14 calls `openai_api` what was `service` before.
    Goes when: ms-swift lists those of the backend at hand, and knows the new name.
    """
    if "evalscope" not in sys.modules:  # then this is no `swift eval`
        return
    from evalscope.api.registry import BENCHMARK_REGISTRY
    from evalscope.constants import EvalBackend, EvalType
    from swift.arguments import EvalArguments

    if not hasattr(EvalType, "SERVICE"):
        EvalType.SERVICE = EvalType.OPENAI_API

    original = EvalArguments.list_eval_dataset

    @wraps(original)
    def list_eval_dataset(eval_backend=None):
        if eval_backend == EvalBackend.NATIVE:
            return {EvalBackend.NATIVE: sorted(BENCHMARK_REGISTRY.keys())}
        return original(eval_backend)

    EvalArguments.list_eval_dataset = staticmethod(list_eval_dataset)
