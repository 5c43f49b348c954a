"""Products of a few tokens with a weight on CPUs with AVX2, where a step spends its time.

Inductor's own kernel takes four rows at a time, loads a weight again for each of them, and in half precision copies
eight numbers to the stack before it converts them, and a row's numbers one by one. So a window of five tokens takes it
1.4 to 2.3 times as long as one token, which takes as long as reading the weights does. This one takes up to six rows at
once, asks for weights ahead of their use, and converts a row in one go (docs/performance/compiled.md).

Each sum is added up in the order of its inputs, as in inductor's kernel, so that a token's logits do not depend on how
many others are in its window.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor.lowering  # before the next, which it imports in a circle
from torch._inductor.codegen import cpp_micro_gemm as inductor
from torch._inductor.codegen.common import KernelTemplate
from torch._inductor.cpu_vec_isa import VecAVX2

ROWS, COLUMNS = 6, 16  # of a block: 12 registers of sums, 2 of weights and 1 of a row's number, of 16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LOCK = threading.Lock()
_KERNEL = r"""
// Eight numbers of a row or a weight, in float32.
inline __m256 {{kernel_name}}_eight(const {{input2_t}}* from) {
{%- if input2_dtype == torch.float32 %}
    return _mm256_loadu_ps(from);
{%- else %}
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    {%- if input2_dtype == torch.bfloat16 %}
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    {%- else %}
    return _mm256_cvtph_ps(halves);
    {%- endif %}
{%- endif %}
}

template <int64_t ROWS, bool accum>
inline void {{kernel_name}}_rows(
    const float* __restrict__ A,
    const {{input2_t}}* __restrict__ B,
    float* __restrict__ C,
    const char* ahead,
    int64_t pace,
    int64_t K,
    int64_t lda,
    int64_t ldb,
    int64_t ldc
) {
    constexpr int64_t COLS = {{block_n}} / 8;
    constexpr int64_t UNROLL = 4;
    __m256 sums[ROWS][COLS];
    #pragma GCC unroll 16
    for (int64_t row = 0; row < ROWS; ++row) {
        #pragma GCC unroll 16
        for (int64_t col = 0; col < COLS; ++col) {
            sums[row][col] = accum ? _mm256_loadu_ps(C + row * ldc + col * 8) : _mm256_setzero_ps();
        }
    }
    auto add = [&](int64_t k) __attribute__((always_inline)) {
        __m256 b[COLS];
        #pragma GCC unroll 16
        for (int64_t col = 0; col < COLS; ++col) {
            b[col] = {{kernel_name}}_eight(B + k * ldb + col * 8);
        }
        #pragma GCC unroll 16
        for (int64_t row = 0; row < ROWS; ++row) {
            const __m256 a = _mm256_broadcast_ss(A + row * lda + k);
            #pragma GCC unroll 16
            for (int64_t col = 0; col < COLS; ++col) {
                sums[row][col] = _mm256_fmadd_ps(a, b[col], sums[row][col]);
            }
        }
    };
    int64_t k = 0;
    for (; k + UNROLL <= K; k += UNROLL) {
        #pragma GCC unroll 16
        for (int64_t u = 0; u < UNROLL; ++u) {
            if constexpr (ROWS > 1 || sizeof({{input2_t}}) < 4) {  // the CPU itself foresees what one float32 row reads
                _mm_prefetch(ahead + (k + u) * pace, _MM_HINT_T1);
            }
        }
        #pragma GCC unroll 16
        for (int64_t u = 0; u < UNROLL; ++u) {
            add(k + u);
        }
    }
    for (; k < K; ++k) {
        add(k);
    }
    #pragma GCC unroll 16
    for (int64_t row = 0; row < ROWS; ++row) {
        #pragma GCC unroll 16
        for (int64_t col = 0; col < COLS; ++col) {
            _mm256_storeu_ps(C + row * ldc + col * 8, sums[row][col]);
        }
    }
}

template <bool accum>
inline void {{kernel_name}}_block(
    const float* __restrict__ A,
    const {{input2_t}}* __restrict__ B,
    float* __restrict__ C,
    const char* ahead,
    int64_t pace,
    int64_t rows,
    int64_t K,
    int64_t lda,
    int64_t ldb,
    int64_t ldc
) {
    switch (rows) {
{%- for rows in range(1, block_m + 1) %}
    case {{rows}}:
        {{kernel_name}}_rows<{{rows}}, accum>(A, B, C, ahead, pace, K, lda, ldb, ldc);
        break;
{%- endfor %}
    default:
        {{kernel.assert_function}}(false, "a block of more rows than there are kernels");
    }
}

{{declare_kernel}} {
    {{kernel.assert_function}}(N % {{block_n}} == 0, "N must be padded to blocks of {{block_n}}");
    // Which weights to ask for: those a little ahead where all are read once; where they are read again, for the next
    // rows and from the cache, those of the block behind them.
    const int64_t passes = M <= {{block_m}} ? 1 : (M + {{block_m - 3}}) / {{block_m - 1}};
    const int64_t stride = ldb * sizeof({{input2_t}});
    const int64_t pace = stride / passes;
    const char* ahead = reinterpret_cast<const char*>(B) + (passes == 1 ? 2048 : K * stride);
    for (int64_t m = 0, rows = 0; m < M; m += rows, ahead += K * pace) {
        rows = M - m <= {{block_m}} ? M - m : {{block_m - 1}};  // of more than six: fives, measured faster than sixes
{%- if input_dtype == torch.float32 %}
        for (int64_t n = 0; n < N; n += {{block_n}}) {
            {{kernel_name}}_block<accum>(A + m * lda, B + n, C + m * ldc + n, ahead, pace, rows, K, lda, ldb, ldc);
        }
{%- else %}
        constexpr int64_t MOST = 512;  // inputs at a time, in float32
        alignas(64) float converted[{{block_m}} * MOST];
        for (int64_t begin = 0; begin < K; begin += MOST) {
            const int64_t count = std::min<int64_t>(K - begin, MOST);
            for (int64_t row = 0; row < rows; ++row) {
                const {{input_t}}* from = A + (m + row) * lda + begin;
                float* to = converted + row * MOST;
                int64_t k = 0;
                for (; k + 8 <= count; k += 8) {
                    _mm256_store_ps(to + k, {{kernel_name}}_eight(from + k));
                }
                for (; k < count; ++k) {
                    to[k] = static_cast<float>(from[k]);
                }
            }
            for (int64_t n = 0; n < N; n += {{block_n}}) {
                if (accum || begin > 0) {
                    {{kernel_name}}_block<true>(
                        converted, B + begin * ldb + n, C + m * ldc + n, ahead + begin * pace, pace, rows, count,
                        MOST, ldb, ldc);
                } else {
                    {{kernel_name}}_block<false>(
                        converted, B + begin * ldb + n, C + m * ldc + n, ahead + begin * pace, pace, rows, count,
                        MOST, ldb, ldc);
                }
            }
        }
{%- endif %}
    }
}
"""


class FewRows(inductor.CppMicroGemmFP32Vec):
    """The product of a block of rows with a block of a weight; see the module."""

    def codegen_define(self, kernel: Any) -> str:
        if self.alpha != 1 or self.tail_n or self.trans_b:
            return super().codegen_define(kernel)
        options = {
            "declare_kernel": self.get_kernel_declaration(),
            "kernel": kernel,
            "block_m": self.register_blocking.block_m,
            "block_n": self.register_blocking.block_n,
            **self.get_common_options(),
        }
        return KernelTemplate._template_from_string(_KERNEL).render(options)


@contextmanager
def few_rows() -> Iterator[None]:
    """Within it inductor takes `FewRows` for every product that its AVX2 kernel would have been taken for.

    Its table is replaced, not written to, since another thread may be reading it; one thread at a time does so.
    """
    with _LOCK:
        before = inductor.micro_gemm_configs
        own = [
            config
            for dtype in _DTYPES
            for config in inductor.generate_gemm_config(
                VecAVX2, [(ROWS, COLUMNS, 1)], input_dtype=dtype, output_dtype=torch.float32
            )
        ]
        ours = {_kind(config) for config in own}
        others = [config for config in before[inductor.CppMicroGemmFP32Vec] if _kind(config) not in ours]
        inductor.micro_gemm_configs = {**before, inductor.CppMicroGemmFP32Vec: others, FewRows: own}
        try:
            yield
        finally:
            inductor.micro_gemm_configs = before


def _kind(config: Any) -> tuple[object, ...]:
    return (config.vec_isa_cls, config.input_dtype, config.input2_dtype, config.output_dtype)
