"""A loaded GGUF file: its facts and its vocabulary."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ggext.errors import ModelError
from ggext.footprint.machine import CoreUse, core_use
from ggext.gguf.shards import metadata_part, whole_header
from ggext.llama_cpp_facts.compressed import COMPRESSED
from ggext.llama_cpp_facts.sliding import has_windows
from ggext.llama_cpp_facts.splitters import BY_HAND
from ggext.runtime import apart, first_load, kernels, llama, long_text
from ggext.runtime.closing import Closing
from ggext.runtime.loading import Loading, LoadProgress
from ggext.runtime.scaled import Overrides, with_overrides
from ggext.runtime.unknown_characters import SPACE_PREFIX, UnknownCharacters

if TYPE_CHECKING:
    from ggext.gguf.reader import GgufFile


_PIECES = 1 << 15  # tokens whose bytes are remembered


class CancelledError(ModelError):
    """A load or a call of `Session.logits` was cancelled; nothing is left of it."""

    exit_code = 130


class Model(Closing):
    """A model's weights and vocabulary in memory. Threads may share it; close it when done.

    ``path``, ``header`` (the file's checked GGUF header), ``n_ctx_train`` (tokens that the file is
    made for, an extended context included), ``n_ctx_original`` (tokens that the model was trained
    on before that), ``is_recurrent`` (layers keep a state in place of their tokens, or tokens that
    several were made to), ``n_swa`` (tokens that layers with a sliding window attend to, 0: there
    are none), ``n_vocab``, ``n_params``, ``size`` (bytes of the weights), ``copied`` (bytes of them
    that are not the mapped file's), ``n_gpu_layers`` (None: as many as the library can).
    """

    def __init__(
        self,
        path: Path,
        header: GgufFile,
        handle: Any,
        gpu_layers: int | None,
        copied: int,
    ) -> None:
        self._lib = llama.lib()
        self.path = path
        self.header = header
        self.n_gpu_layers = gpu_layers
        self._handle = handle
        self._vocab = self._lib.llama_model_get_vocab(handle)
        self.copied = copied
        #: How busy the machine was when the weights began to be read.
        self.loading_began: CoreUse | None = None
        self.sessions: WeakSet[Closing] = WeakSet()
        self.n_ctx_train = int(self._lib.llama_model_n_ctx_train(handle))
        original = header.get(f"{header.arch}.rope.scaling.original_context_length")
        self.n_ctx_original = (
            original if isinstance(original, int) and original > 0 else self.n_ctx_train
        )
        slides = has_windows(header.arch, header.arch_keys())
        self.n_swa = int(self._lib.llama_model_n_swa(handle)) if slides else 0
        self.is_recurrent = bool(
            self._lib.llama_model_is_recurrent(handle)
            or self._lib.llama_model_is_hybrid(handle)
            or header.arch in COMPRESSED  # of whose cache nothing can be taken out
        )
        self.n_vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self.n_params = int(self._lib.llama_model_n_params(handle))
        self.size = int(self._lib.llama_model_size(handle))

    @classmethod
    def open(
        cls,
        path: str | Path,
        gpu_layers: int | None = None,
        progress: LoadProgress | None = None,
        overrides: Overrides | None = None,
    ) -> Model:
        """Loads a GGUF file; of a model in several parts any of them, or their folder, may be
        named.

        `gpu_layers` None offloads whatever the library can. `overrides`: full keys, and values
        that llama.cpp takes in place of the file's (`runtime.scaled`); ``header`` has them too.

        `progress` is called with 0.0 to 1.0 and cancels the load by returning False. A file that
        this llama.cpp has not seen is loaded in a child first: see `ggext.runtime.first_load`.
        Raises GgufError for a malformed file, ModelError when llama.cpp refuses it,
        EngineDiedError when it does not survive it, CancelledError.
        """
        path = metadata_part(Path(path))
        header = llama.check_gguf(path)
        module = llama.lib()
        progress = _tried(header, gpu_layers, progress)
        params = module.llama_model_default_params()
        params.use_extra_bufts = kernels.check().extra_buffers
        if gpu_layers is not None:
            params.n_gpu_layers = gpu_layers
        if overrides:
            header = with_overrides(header, overrides)
        by_hand = {} if UnknownCharacters.of(header) is None else {SPACE_PREFIX: False}
        if overrides or by_hand:
            params.kv_overrides = _override_array(
                module, {**(overrides or {}), **by_hand}
            )
        began = core_use()
        loading = Loading(progress)
        callback = module.llama_progress_callback(loading)
        params.progress_callback = callback
        with llama.listening() as log:
            handle = apart.run(
                lambda: module.llama_model_load_from_file(os.fsencode(path), params),
                stop=loading.stop,
                free=module.llama_model_free,
                meanwhile=loading.tell,
            )
            if loading.stopped:
                if handle:
                    module.llama_model_free(handle)
                raise CancelledError(f"loading {path} was cancelled")
            if not handle:
                raise llama.failure(f"{path} cannot be loaded")
        if module.llama_model_has_encoder(handle) or not module.llama_model_has_decoder(
            handle
        ):
            module.llama_model_free(handle)
            raise ModelError(
                f"{path} ({header.arch}) is not a model that continues text"
            )
        model = cls(path, header, handle, gpu_layers, log.copied_weights())
        model.loading_began = began
        return model

    def close(self) -> None:
        """Frees the model, after its sessions. Further calls do nothing."""
        for session in list(self.sessions):
            session.close()
        handle = self._handle
        self._handle = None
        if handle:
            self._lib.llama_model_free(handle)

    @cached_property
    def all_parts(self) -> GgufFile:
        """The header with the tensors of all of the model's files."""
        return whole_header(self.header)

    @property
    def offloads(self) -> bool:
        """Whether layers of the model are on a GPU."""
        return self.n_gpu_layers != 0 and bool(self._lib.llama_supports_gpu_offload())

    @property
    def architecture(self) -> str:
        """The architecture's name in the file, such as ``llama``."""
        return self.header.arch

    @property
    def description(self) -> str:
        """llama.cpp's short description, such as ``llama 7B Q4_K - Medium``."""
        buffer = ctypes.create_string_buffer(256)
        self._lib.llama_model_desc(self.open_handle(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The file's chat template, as it stands there."""
        template = self.header.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template.strip() else None

    @property
    def adds_bos(self) -> bool:
        """Whether the vocabulary wants its BOS in front of every text."""
        return (
            bool(self._lib.llama_vocab_get_add_bos(self.vocabulary())) and self.bos >= 0
        )

    @property
    def bos(self) -> int:
        """The begin-of-text token, -1 when there is none."""
        return int(self._lib.llama_vocab_bos(self.vocabulary()))

    @property
    def eos(self) -> int:
        """The end-of-text token, -1 when there is none."""
        return int(self._lib.llama_vocab_eos(self.vocabulary()))

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """The tokens of `text`. `add_special`: with the BOS and EOS that the vocabulary wants.

        A token that it wants and has not is not added: llama.cpp would end the process.

        `parse_special`: spellings of control tokens in the text become those tokens; only for
        text that the caller wrote.
        """
        add_special = add_special and self._has_what_it_adds
        unknown = self._unknown_characters
        if unknown is not None:
            tokens = unknown.tokenize(
                text,
                lambda part: self._tokenize(part, False, False),
                parse_special=parse_special,
            )
        elif (
            not self._splits_by_regex or len(text) <= long_text.TAKEN + long_text.AHEAD
        ):
            return self._tokenize(text, add_special, parse_special)
        else:
            tokens = long_text.tokens_of(
                text, lambda part: self._tokenize(part, False, parse_special)
            )
        if not add_special:
            return tokens
        around = self._tokenize("", True, False)
        start = around[:1] if self.adds_bos else []
        return [*start, *tokens, *around[len(start) :]]

    @cached_property
    def _unknown_characters(self) -> UnknownCharacters | None:
        return UnknownCharacters.of(self.header)

    @cached_property
    def _has_what_it_adds(self) -> bool:
        """Whether the tokens are there that the vocabulary adds to a text (BOS, EOS, SEP)."""
        lib = self._lib
        vocab = self.vocabulary()
        if (
            lib.llama_vocab_type(vocab) == lib.LLAMA_VOCAB_TYPE_WPM
        ):  # adds both whatever it says
            return bool(
                min(lib.llama_vocab_bos(vocab), lib.llama_vocab_sep(vocab)) >= 0
            )
        additions = (
            (lib.llama_vocab_get_add_bos, lib.llama_vocab_bos),
            (lib.llama_vocab_get_add_eos, lib.llama_vocab_eos),
            (lib.llama_vocab_get_add_sep, lib.llama_vocab_sep),
        )
        return all(token(vocab) >= 0 for adds, token in additions if adds(vocab))

    @cached_property
    def _splits_by_regex(self) -> bool:
        """Whether llama.cpp splits text by std::regex, and not by what was written by hand."""
        return (
            self.header.get("tokenizer.ggml.model") == "gpt2"
            and self.header.get("tokenizer.ggml.pre", "default") not in BY_HAND
        )

    def _tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")
        vocab = self.vocabulary()
        room = len(data) + 4
        for _ in range(2):
            tokens = (ctypes.c_int32 * room)()
            count = self._lib.llama_tokenize(
                vocab, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            room = -count
        raise ModelError(
            f"{self.path}: llama.cpp cannot tokenize a text of {len(data)} bytes"
        )

    def token_to_piece(self, token: int) -> bytes:
        """The bytes that a token stands for, empty for control tokens; UTF-8 only when joined."""
        return self._piece(token)

    @cached_property
    def _piece(self) -> Callable[[int], bytes]:
        """`token_to_piece`, which remembers: an answer asks for each of its tokens."""
        return lru_cache(_PIECES)(self._read_piece)

    def _read_piece(self, token: int) -> bytes:
        size = 64
        vocab = self.vocabulary()
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._lib.llama_token_to_piece(
                vocab, self._checked_token(token), buffer, size, 0, False
            )
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def token_text(self, token: int) -> str:
        """How the vocabulary spells a token, control tokens included: ``<s>``."""
        text = self._lib.llama_vocab_get_text(
            self.vocabulary(), self._checked_token(token)
        )
        return bytes(text).decode("utf-8", "replace")

    @cached_property
    def is_last(self) -> Callable[[int], bool]:
        """`is_eog` of a token that is one; for generating, where the call would be made for each
        token."""
        return cache(partial(self._lib.llama_vocab_is_eog, self.vocabulary()))

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation (EOS, end of turn, ...)."""
        vocab = self.vocabulary()
        return bool(self._lib.llama_vocab_is_eog(vocab, self._checked_token(token)))

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token, which no ordinary text becomes."""
        vocab = self.vocabulary()
        return bool(self._lib.llama_vocab_is_control(vocab, self._checked_token(token)))

    def open_handle(self) -> Any:
        """llama.cpp's pointer to the model. Raises ModelError once closed."""
        if not self._handle:
            raise ModelError(f"{self.path} is closed")
        return self._handle

    def vocabulary(self) -> Any:
        """llama.cpp's pointer to the vocabulary. Raises ModelError once closed, or where the file
        has none."""
        self.open_handle()
        # llama.cpp aborts the process when a file without a vocabulary is asked for tokens.
        if self._lib.llama_vocab_type(self._vocab) == self._lib.LLAMA_VOCAB_TYPE_NONE:
            raise ModelError(
                f"{self.path} has no vocabulary; convert it again with its tokenizer"
            )
        return self._vocab

    def _checked_token(self, token: int) -> int:
        if not 0 <= token < self.n_vocab:
            raise ModelError(
                f"token {token} is not in the vocabulary of {self.n_vocab} tokens"
            )
        return token


def _override_array(module: Any, overrides: Overrides) -> Any:
    """llama.cpp's array, which an entry without a key ends."""
    entries = []
    for key, value in overrides.items():
        entry = module.llama_model_kv_override()
        entry.key = key.encode()
        if isinstance(value, str):
            entry.tag = module.LLAMA_KV_OVERRIDE_TYPE_STR
            entry.value.val_str = value.encode()
        elif isinstance(value, bool):
            entry.tag = module.LLAMA_KV_OVERRIDE_TYPE_BOOL
            entry.value.val_bool = value
        elif isinstance(value, int):
            entry.tag = module.LLAMA_KV_OVERRIDE_TYPE_INT
            entry.value.val_i64 = value
        else:
            entry.tag = module.LLAMA_KV_OVERRIDE_TYPE_FLOAT
            entry.value.val_f64 = value
        entries.append(entry)
    end = module.llama_model_kv_override()
    return (module.llama_model_kv_override * (len(entries) + 1))(*entries, end)


def _tried(
    header: GgufFile, gpu_layers: int | None, progress: LoadProgress | None
) -> LoadProgress | None:
    """Has a child survive the file, where that is not known; the progress of what follows."""
    kept = first_load.untried(header, gpu_layers)
    if kept is None:
        return progress

    def half(fraction: float, start: float = 0.0) -> bool:
        return progress is None or progress(start + fraction / 2)

    if not first_load.survive(header, gpu_layers, kept, half):
        raise CancelledError(f"loading {header.path} was cancelled")
    return None if progress is None else partial(half, start=0.5)
