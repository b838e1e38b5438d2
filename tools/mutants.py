#!/usr/bin/env python3
"""Hand-made faults in the attention kernels, their tables, the sharing of pages and the KV cache: do the tests see each of them?
One mutant at a time is one changed text, compiled into an object of its own and linked before the library that holds the right
one; no file of the tree is touched. A kernel's text is mutated in one instruction set alone (`wide`: the widest of this CPU,
`avx512`, `avx2`, `scalar`: both scalar sets), so that the other sets and the oracle must disagree with it, or in all of them (`all`), so
that the oracle alone can. Of an instruction set only the slots of attention and rows are built: products of weights take most of
the compiler's time and no test here asks for them.
usage: mutants.py [--jobs N] [--only NUMBER,...] [--check]   (--check: the texts are there exactly once and docs/MUTANTS.md lists all)
Exit 1 if a mutant survives, does not build, or its text is not found exactly once."""
import argparse, concurrent.futures, json, os, re, shlex, shutil, subprocess, sys, threading, time
from collections import namedtuple

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
BUILD = "build/mutants"
PROGRAMS = ["attend_test", "kv_cache_test", "shift_test", "pieces_test"]
LIMIT_S = 900  # of one run of a test program; a mutant that hangs is killed by it
Mutant = namedtuple("Mutant", "path where old new fault tests", defaults=(("attend_test",),))
BACKEND, CACHE = ("shift_test", "attend_test"), ("kv_cache_test", "shift_test")

MUTANTS = [
    # ---- tables
    Mutant("src/cpu/attend_simd.inl", "wide", "slot.weigh = weigh_quant_simd<Codec>;",
           "slot.weigh = weigh_quant_simd<CodecOf<Type == KvType::q4_0 ? KvType::iq4_nl : Type>>;",
           "wrong table row: V in q4_0 is weighed by the kernel of iq4_nl"),
    Mutant("src/cpu/attend_simd.inl", "avx2", "slot.scores = scores_quant_simd<Codec>;",
           "if (Type != KvType::q5_1) slot.scores = scores_quant_simd<Codec>;",
           "a slot is left out: q5_1 keys silently stay scalar"),
    Mutant("src/cpu/attend_simd.inl", "wide", "slot.store_v = store_quant_simd<Codec, false>;",
           "slot.store_v = store_quant_simd<Codec, true>;", "values are stored in the layout of keys"),
    Mutant("src/cpu/attend_scalar.inl", "scalar", "erase_quant<Codec, false>, scores_quant<Codec>",
           "erase_quant<Codec, true>, scores_quant<Codec>", "values are erased where keys would lie"),
    Mutant("src/codec/kv_types.def", "all", "KV_TYPE(q5_0, 22,", "KV_TYPE(q5_0, 20,",
           "wrong table row: tiles of q5_0 as far apart as those of q4_1"),
    Mutant("src/codec/kv_layout.h", "all",
           "scales, has_minimum ? scales + scale_bytes : -1,",
           "has_minimum ? scales + scale_bytes : scales, has_minimum ? scales : -1,",
           "minima lie before the scales, in every instruction set alike"),
    Mutant("src/codec/kv_codec.h", "all", "-22, -10,", "-22, -9,", "one value of the table of iq4_nl, in every instruction set alike"),
    # ---- unpacking
    Mutant("src/cpu/attend_codes.inl", "wide", "tile + at.high + i * 16 + half * 8",
           "tile + at.high + i * 16 + (1 - half) * 8", "fifth bits of the other 16 positions"),
    Mutant("src/cpu/attend_codes.inl", "avx2", "(head_dim / 16) + b * 2 + half) * 8",
           "(head_dim / 16) + b * 2) * 8", "the upper 16 channels of a block take the fifth bits of the lower ones"),
    Mutant("src/cpu/attend_codes.inl", "wide", "f_store(x + i + 16, load_floats<Float>(tile + int64_t{i + 16} * Float::bytes));",
           "f_store(x + i + 16, load_floats<Float>(tile + int64_t{i} * Float::bytes));",
           "a tile converted for many rows repeats its even vectors"),
    # ---- scores
    Mutant("src/cpu/attend_scores.inl", "wide", "KeyDot<Codec>::bias * (sums16[2 * i] + sums16[2 * i + 1])",
           "KeyDot<Codec>::bias * (sums16[2 * i] + sums16[2 * i])", "sum16 of the wrong half of the block"),
    Mutant("src/cpu/attend_scores.inl", "avx2", "bias = Codec::bias, largest",
           "bias = Codec::bias * 7 / 8, largest", "wrong zero point: 7 for q4_0 keys"),
    Mutant("src/cpu/attend_scores.inl", "avx512", "d[h] = f_halves(args.tile + at.scales + b * 64 + h * 32);",
           "d[h] = f_halves(args.tile + at.scales + (b > 0 ? b - 1 : 0) * 64 + h * 32);",
           "key scales of the neighbouring block"),
    Mutant("src/cpu/attend_scores.inl", "avx512", "f_fma(f_set(sums.sum[", "f_fma(f_set(last ? 0.0f : sums.sum[",
           "the minimum of a key's last block is not added"),
    Mutant("src/cpu/attend_scores.inl", "avx512", "Floats s = first ? f_zero() : f_load(out + 16 * h);",
           "Floats s = first && h == 0 ? f_zero() : f_load(out + 16 * h);",
           "scores of the upper 16 positions start from what the buffer held"),
    Mutant("src/cpu/attend_scores_sixteen.inl", "avx2", "s = f_mul(s, f_set(args.scale[r]));", "s = f_mul(s, f_set(args.scale[0]));",
           "all rows of a tile are scaled by the first one's d_q"),
    Mutant("src/cpu/attend_scores.inl", "wide", "    args.sums16 += kRowsTogether * (hd / 16);\n", "",
           "rows beyond 64 take the sums of the first ones"),
    Mutant("src/cpu/attend_scores.inl", "wide", "sums[n][k] = f_fma(x[n], key, sums[n][k]);",
           "sums[n][k] = f_fma(x[0], key, sums[n][k]);", "float K: a pair of rows shares the first one's query"),
    # ---- weighted sums
    Mutant("src/cpu/attend_weigh.inl", "wide", "f_select(m_first(n_visible), w, f_zero())",
           "f_select(m_first(n_visible + 1), w, f_zero())", "the mask of the weights is one position too long"),
    Mutant("src/cpu/attend_weigh.inl", "avx2", "f_select(m_first(n_visible - 16), both, low)",
           "f_select(m_first(n_visible - 15), both, low)", "the mask of the minima is one position too long"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "f_select(partner, f_set(float_of(0x7fc00000u)), zero)", "zero", "a tile with a weight that is not finite adds nothing instead of NaN"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "m_less(x, f_set(kTinyMagnitude))", "m_less(x, f_set(0x1p-110f))",
           "weights from 2^-110 on count, not from 2^-100"),
    Mutant("src/cpu/attend_scalar.inl", "scalar", "static_cast<int>(round_even(w[i] * r))", "static_cast<int>(w[i] * r + 0.5f)",
           "weights on a tie are rounded away from zero"),
    Mutant("src/cpu/attend_weigh.inl", "avx2", "const Quad flip = quad(sign + 4 * i);", "const Quad flip = quad(sign);",
           "the signs of the first four scales count for all positions"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "? 0 : Codec::bias;", "? 0 : 8;", "wrong zero point: 8 for q5_0 values"),
    Mutant("src/cpu/attend_weigh.inl", "avx512", "f_load(acc + n * args.acc_stride + 16 * h);\n    }\n  }\n  add_quants",
           "f_load(acc + n * args.head_dim + 16 * h);\n    }\n  }\n  add_quants", "wrong stride of the sums of a pair of rows"),
    Mutant("src/cpu/attend_weigh.inl", "avx512", "weights.correction[pair + n * n_blocks]", "weights.correction[pair]",
           "the second of two rows takes the first one's correction for flipped codes"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "    args.n_visible += kRowsTogether;\n", "",
           "rows beyond 64 see what the first ones see"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "if (visible[n] == common) continue;",
           "if (visible[n] >= common) continue;", "float V: the causal edge of a pair of rows is the first one's"),
    # ---- rows
    Mutant("src/codec/numerics.h", "all", "kExpC4 = 0x1.555556p-5f", "kExpC4 = 0x1.555556p-4f",
           "a coefficient of exp, in every instruction set alike"),
    Mutant("src/cpu/rows_simd.inl", "wide", "f_only(m_first(n_visible - i), p[0])",
           "f_only(m_first(n_visible - i + 1), p[0])", "softmax counts one invisible position"),
    Mutant("src/cpu/rows_simd.inl", "avx2", "for (; i < 256; i += 16) f_store(s + i, f_zero());",
           "for (; i < 240; i += 16) f_store(s + i, f_zero());", "the last 16 weights of a page keep their scores"),
    Mutant("src/cpu/rows_simd.inl", "wide", "f_select(m_first(n - i), f_load(s + i), top[1])",
           "f_select(m_first(n - i - 1), f_load(s + i), top[1])", "the last key does not count in the maximum"),
    Mutant("src/cpu/rows_simd.inl", "wide", "m_not_less(x[i], f_set(kExpLowest))",
           "m_not_less(x[i], f_set(-200.0f))",
           "exp below -87 is subnormal instead of zero"),
    Mutant("src/cpu/rows_simd.inl", "wide", "f_add(f_mul(f_load(acc + i), f_set(a)), f_mul", "f_add(f_load(acc + i), f_mul",
           "pages are merged without rescaling the earlier ones"),
    Mutant("src/cpu/rows_simd.inl", "avx2", "f_div(f_load(acc + i), f_set(l))", "f_mul(f_load(acc + i), f_set(1.0f / l))",
           "the end multiplies by 1 / l"),
    Mutant("src/cpu/rows_simd.inl", "wide", "f_butterfly<8>(f_butterfly<4>(f_butterfly<2>(f_butterfly<1>(v[i]))))",
           "f_butterfly<1>(f_butterfly<2>(f_butterfly<4>(f_butterfly<8>(v[i]))))", "the strides of the rotation are in another order"),
    Mutant("src/cpu/rows_simd.inl", "wide", "f_add(f_mul(a, s), f_mul(b, c))", "f_fma(a, s, f_mul(b, c))",
           "RoPE fuses a product and an addition"),
    # ---- storing
    Mutant("src/cpu/attend_store.inl", "wide", "m_first_of(m_equal_ints(a, top), m_equal_ints(b, top))",
           "m_first_of(m_equal_ints(b, top), m_equal_ints(a, top))", "of equal extremes one in the other half counts"),
    Mutant("src/cpu/attend_store.inl", "avx2", "divided_codes(x[h], d, -Codec::bias, Codec::bias - 1)",
           "divided_codes(x[h], d, -Codec::bias, Codec::bias)", "codes may reach 16 or 32 and lose their top bit"),
    Mutant("src/cpu/attend_store.inl", "wide", "put(plane, (byte_at(plane) & ~(15u << shift)) | nibble << shift);",
           "put(plane, nibble << shift);", "storing a key erases the fifth bits of its neighbour"),
    Mutant("src/cpu/attend_scalar.inl", "scalar", "for (int pos = from; pos < 32; ++pos)", "for (int pos = from + 1; pos < 32; ++pos)",
           "erasing starts one position late"),
    # ---- the backend shares the work out
    Mutant("src/cpu/cpu_attend.cc", "", "turn_query(step, row, head, true, kept);", "turn_query(step, row, head, true, x);",
           "the query for pages that moved is turned twice", BACKEND),
    Mutant("src/cpu/cpu_attend.cc", "", "page < last.n_kept};", "page <= last.n_kept};",
           "the first page that moved takes the queries of those kept", BACKEND),
    Mutant("src/cpu/cpu_attend.cc", "", "std::clamp(pos + 1 - page * kPagePositions, 0", "std::clamp(pos - page * kPagePositions, 0",
           "a position does not see itself", BACKEND),
    Mutant("src/cpu/cpu_attend.cc", "", "(visible + kTilePositions - 1) / kTilePositions", "(visible + kTilePositions - 2) / kTilePositions",
           "a tile with a single position is left out", BACKEND),
    Mutant("src/cpu/cpu_attend.cc", "", "block, row, page) > 0;", "block, row, page) >= 0;",
           "rows that see nothing of a page merge what another row left", BACKEND),
    Mutant("src/cpu/cpu_attend.cc", "", "x, hd, slot, tile_of(step.v_pages, plan.tile_bytes_v(),", "x, hd, slot, tile_of(step.v_pages, plan.tile_bytes_k(),",
           "values are stored as far apart as keys", BACKEND),
    Mutant("src/cpu/cpu_attend.cc", "", "step.rows[static_cast<size_t>(end)].run == step.rows[static_cast<size_t>(first)].run",
           "step.rows[static_cast<size_t>(end)].run >= step.rows[static_cast<size_t>(first)].run",
           "a block spans two sequences and reads the pages of the last", BACKEND),
    Mutant("src/cpu/cpu_attend.cc", "", "weigh.p = scratch.s + t * kTilePositions;", "weigh.p = scratch.s + (t & 3) * kTilePositions;",
           "tiles 4 to 7 of a page are weighed by the first four's weights", BACKEND),
    # ---- sequences
    Mutant("src/model/kv_cache.cc", "", "tile == from / kTilePositions ? from % kTilePositions : 0", "from % kTilePositions",
           "cutting erases the tail of every tile only", CACHE),
    Mutant("src/model/kv_cache.cc", "", "references(shared) == 1) return;", "references(shared) <= 2) return;",
           "the last of two holders writes into a shared page", CACHE),
    Mutant("src/model/kv_cache.cc", "", "sequence.moved += by;", "sequence.moved = by;", "a second shift forgets the first",
           ("shift_test",)),
    # ---- later ones
    Mutant("src/cpu/attend_weigh.inl", "wide", "f_store_partners<N>(out.c", "f_store_some<N>(out.c",
           "sums of values are scaled by 255 / x, not by x / 255"),
    Mutant("src/cpu/attend_pieces.cc", "", "  if (!few_) return;\n", "  return;\n", "sums of pages are added by whoever is ready", ("pieces_test",)),
    Mutant("src/cpu/attend_pieces.cc", "", "? begin + next.n_done : begin - 1", "? begin + n_own - 1 - next.n_done : begin - 1",
           "a thread takes its own blocks from the back", ("pieces_test",)),
    # ---- chains, merges and RoPE in vectors, whole pages
    Mutant("src/cpu/attend_scores.inl", "avx512", "dot = i_add(dot, dots[h][k].sum());", "dot = dots[h][k].sum();",
           "the first chain of a key's sum is lost"),
    Mutant("src/cpu/rows_simd.inl", "wide", "below_p == 0.0f ? 1.0f", "below_p <= 0.0f ? 1.0f",
           "a page below the running maximum is merged with full weight"),
    Mutant("src/cpu/rows_simd.inl", "wide", "f_mul(f_twice(sin + i / 2), signs)", "f_mul(f_twice(sin + i / 2), f_abs(signs))",
           "interleaved RoPE turns both of a pair by sums"),
    Mutant("src/cpu/cpu_attend.cc", "", "visible_in_page(step, block, 0, piece.page) == kPagePositions",
           "visible_in_page(step, block, 0, piece.page) > 0",
           "a page that the first query sees in part counts as whole", BACKEND),
    # ---- pairs known at compile time, first tiles
    Mutant("src/cpu/attend_weigh.inl", "wide", "first / Blocks + k / Blocks;", "first / Blocks;",
           "rows worked out together take the first one's scores"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "65536 / n_blocks + 1", "65536 / n_blocks",
           "other head sizes: the last pair of a row is counted to the next row"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "args.first ? f_zero()", "false ? f_zero()",
           "the first tile of a page adds to what its sums held before"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "args.first && at_once.begin == 0", "args.first",
           "float V: positions that some rows see lose those that all of them see"),
    # ---- few rows of codes with a zero point
    Mutant("src/cpu/vec_avx512.h", "avx512", "_mm256_add_epi8(sign, _mm256_set1_epi8(Bias))", "_mm256_set1_epi8(Bias)",
           "flipped codes keep the zero point of the others"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "blocks[k] = pairs.block(k);", "blocks[k] = pairs.block(0);",
           "all blocks of a row are corrected by the first one's signs"),
    Mutant("src/cpu/attend_scores.inl", "avx512", "sum_start(sums.start[r * (hd / 32) + b])", "sum_start(sums.start[b])",
           "sums of keys start from the first row's bias"),
    # ---- sixteen registers
    Mutant("src/cpu/attend_scores_sixteen.inl", "avx2", "d[h] = f_halves(args.tile + at.scales + b * 64 + h * 32);",
           "d[h] = f_halves(args.tile + at.scales + b * 64);", "sixteen registers: key scales of the lower 16 positions for all 32"),
    Mutant("src/cpu/attend_scores_sixteen.inl", "avx2", "f_fma(f_set(sums.sum[r * blocks + b])",
           "f_fma(f_set(sums.sum[b])", "sixteen registers: every row takes the first one's sums for the minima of keys"),
    Mutant("src/cpu/attend_scores_sixteen.inl", "avx2", "first ? f_zero() : f_load(out + 16 * h)",
           "first ? f_load(out + 16 * h) : f_load(out + 16 * h)", "sixteen registers: scores start from what was there before"),
    Mutant("src/cpu/attend_scores_sixteen.inl", "avx2", "quad_now(args.q + int64_t{r} * hd + 32 * b + 4 * i)",
           "quad_now(args.q + 32 * b + 4 * i)", "keys in place: the second row takes the first one's query"),
    Mutant("src/cpu/attend_weigh_sixteen.inl", "avx2", "f_set(weights.c[pair + n * n_blocks])", "f_set(weights.c[pair])",
           "values in place: the second row takes the first one's scales"),
    Mutant("src/cpu/attend_weigh_sixteen.inl", "avx2", "if (sign_bytes(args.tile + at.scales + b * 64, sign)) return false;",
           "sign_bytes(args.tile + at.scales + b * 64, sign);", "values in place: negative scales of q8_0 count as positive"),
    Mutant("src/cpu/attend_weigh_sixteen.inl", "avx2", "args.first ? f_zero() : f_load(acc)", "f_load(acc)",
           "values in place: first tiles add to what was there before"),
    Mutant("src/cpu/vec_avx2_products.h", "avx2", "32767 / Most < 8 ? 32767 / Most : 8", "65535 / Most < 8 ? 65535 / Most : 8",
           "sums of pairs are widened after they may have overflowed"),
    Mutant("src/cpu/vec_avx2_products.h", "avx2", "of.high.template total<16>()", "of.high.template total<8>()",
           "the upper half bytes of weights count half"),
    # ---- pages ahead, sums that lie together
    Mutant("src/cpu/attend_pieces.cc", "", "(std::memory_order_relaxed) + 2 * team_ <=", "(std::memory_order_relaxed) <=",
           "a thread takes the last pages long before it computes them", ("pieces_test",)),
    Mutant("src/cpu/cpu_attend.cc", "", "step.q + (index + i) * hd;", "step.q + (index / group + i) * hd;",
           "sums of one head lie on those of others", BACKEND),
    # ---- half bytes apart, flipped table values
    Mutant("src/cpu/vec_avx2_products.h", "avx2", "b_store(high, b_field<4, 1>(weights));", "b_store(high, b_field<4, 0>(weights));",
           "the lower half bytes of weights count as the upper ones, too"),
    Mutant("src/cpu/attend_weigh.inl", "wide", "store_factors<kZeroPoint<Codec>>", "store_factors<kIsTable<Codec> ? 1 : kZeroPoint<Codec>>",
           "values of iq4_nl take a zero point of 1"),
    # ---- turned float keys
    Mutant("src/cpu/attend_turned.inl", "avx2", "f_set(q[n * hd + c + j])", "f_set(q[c + j])",
           "turned keys: every row takes the first one's query"),
    Mutant("src/cpu/vec_avx2.h", "avx2", "_mm_loadu_ps(p + 4 * stride), 1);", "_mm_loadu_ps(p + 3 * stride), 1);",
           "turned keys: the upper four positions are one off"),
]

SETS = {"": [], "avx512": ["avx512"], "scalar": ["scalar", "scalar_fma"], "avx2": ["avx2"], "all": ["scalar", "scalar_fma", "avx2", "avxvnni", "avx512"]}
SCALAR = """#include "cpu/attend_scalar.inl"
#include "cpu/weights_scalar.inl"
namespace bantam {
void fill_%(set)s(Kernels& table) {
  fill_weights_scalar(table);
  fill_attend_scalar(table);
}
}  // namespace bantam
"""
SIMD = """%(define)s#include "cpu/vec_%(header)s.h"
//
#include "cpu/attend_simd.inl"
namespace bantam {
void fill_%(set)s(Kernels& table) {
  fill_rows_simd(table);
  fill_attend_simd(table);
}
}  // namespace bantam
"""


class Tree:
    """The right build: what compiles and links what."""

    def __init__(self, jobs):
        configure = ["cmake", "--preset", "release", "-B", BUILD, "-DBUILD_TESTING=ON"]
        if shutil.which("ccache"):
            configure.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
        run(configure)
        run(["cmake", "--build", BUILD, "-j", str(jobs), "--target"] + PROGRAMS)
        self.compile = {}  # object -> arguments without the compiler's cache, source last
        for entry in json.load(open(f"{BUILD}/compile_commands.json")):
            words = shlex.split(entry["command"])
            words = words[1:] if words[0].endswith("ccache") else words
            self.compile[words[words.index("-o") + 1]] = words
        self.link = {}
        for program in PROGRAMS:
            last = run(["ninja", "-C", BUILD, "-t", "commands", program]).strip().split("\n")[-1]
            self.link[program] = shlex.split(last.removeprefix(": && ").removesuffix(" && :"))
        self.users = {}  # path in the tree -> objects made of it
        target, here = None, os.path.realpath(ROOT) + "/"
        for line in run(["ninja", "-C", BUILD, "-t", "deps"]).split("\n"):
            if line and not line.startswith(" "):
                target = line.split(":")[0]
            elif line.strip().startswith(here):
                self.users.setdefault(line.strip()[len(here):], set()).add(target)

    def isa_object(self, name):
        return next(o for o in self.compile if o.endswith(f"/isa_{name}.cc.o"))

    def objects(self, program, path):
        """Objects of a program that hold a text, without those of the instruction sets."""
        layers = re.findall(r"libbantam_(\w+)\.a", " ".join(self.link[program]))
        folders = [f"CMakeFiles/bantam_{layer}.dir/" for layer in layers] + [f"CMakeFiles/{program}.dir/"]
        return [o for o in sorted(self.users.get(path, [])) if "/isa_" not in o and any(o.startswith(f) for f in folders)]


def run(words, **options):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(words)}:\n{done.stdout[-4000:]}")
    return done.stdout


class Failed(Exception):
    pass


class Workshop:
    """One mutant: its texts, objects and programs in a folder that is emptied first."""

    def __init__(self, tree, number, mutant):
        self.tree, self.mutant = tree, mutant
        self.folder = os.path.realpath(f"{BUILD}/mutant/{number}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.made = {}  # object of the right build -> the mutant's
        if mutant is not None:
            text = open(mutant.path).read().replace(mutant.old, mutant.new)
            copy = os.path.join(self.folder, mutant.path)
            os.makedirs(os.path.dirname(copy))
            open(copy, "w").write(text)

    def compile(self, right, source=None):
        if right in self.made:
            return
        out = os.path.join(self.folder, right.replace("/", "_"))
        words = list(self.tree.compile[right])
        words[words.index("-o") + 1] = out
        words[-1] = source or words[-1]
        if self.mutant is not None and words[-1].endswith("/" + self.mutant.path):
            words[-1] = os.path.join(self.folder, self.mutant.path)
        # The mutant's text is found first; includes name paths below src/.
        words[1:1] = ["-I" + os.path.join(self.folder, "src")]
        done = subprocess.run(words, cwd=BUILD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise Failed("does not build: " + "\n".join(re.findall(r".*error: .*", done.stdout)[:3]))
        self.made[right] = out

    def compile_sets(self, names):
        os.makedirs(self.folder, exist_ok=True)
        for name in names:
            header = "avx2" if name == "avxvnni" else name
            define = "#define BANTAM_AVX_VNNI 1\n" if name == "avxvnni" else ""
            source = os.path.join(self.folder, f"isa_{name}.cc")
            text = SCALAR if name.startswith("scalar") else SIMD
            open(source, "w").write(text % {"set": name, "header": header, "define": define})
            self.compile(self.tree.isa_object(name), source)

    def program(self, name):
        if self.mutant is not None:
            for right in self.tree.objects(name, self.mutant.path):
                self.compile(right)
        out = os.path.join(self.folder, name)
        words = [self.made.get(word, word) for word in self.tree.link[name]]
        words[words.index("-o") + 1] = out
        first = next(i for i, word in enumerate(words) if word.startswith("libbantam_"))
        words[first:first] = [made for made in self.made.values() if made not in words]
        done = subprocess.run(words, cwd=BUILD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise Failed("does not link: " + done.stdout[-300:])
        return out

    def clean(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def killer(program, path, sample, tests="*"):
    """The first test that fails, or None."""
    environment = {k: v for k, v in os.environ.items() if k not in ("BANTAM_SAMPLE", "BANTAM_FULL", "BANTAM_SEED")}
    environment["GTEST_FAIL_FAST"] = "1"
    if sample:
        environment["BANTAM_SAMPLE"] = "1"
    try:
        done = subprocess.run([path, f"--gtest_filter={tests}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"{program} (ran past {LIMIT_S} s)"
    if done.returncode == 0:
        return None
    text = done.stdout.decode(errors="replace")
    failed = re.findall(r"^\[  FAILED  \] (\w+\.\w+) \(", text, re.M)
    begun = re.findall(r"^\[ RUN      \] (\w+\.\w+)", text, re.M)
    if failed:
        return f"{program} {failed[0]}"
    if begun:
        return f"{program} {begun[-1]} (ends with {done.returncode})"
    raise Failed(f"{program} does not start: {text[-300:]}")


SLOW = "Attend.EveryPairOfTypesAndIsaMatchesTheOracle:Attend.OtherHeadSizesAndGroups"


def plan_of(mutant):
    """Runs in order (program, sample, tests): of attend_test what is quick, then the rest of the small sample, then the whole."""
    for program in mutant.tests:
        if program == "attend_test":
            yield from ((program, True, "-" + SLOW), (program, True, SLOW), (program, False, "*"))
        else:
            yield program, False, "*"


def examine(tree, number, mutant, widest):
    """(killed by, error)"""
    shop = Workshop(tree, number, mutant)
    try:
        shop.compile_sets([widest] if mutant.where == "wide" else SETS[mutant.where])
        for program, sample, tests in plan_of(mutant):
            by = killer(program, shop.program(program), sample, tests)
            if by is not None:
                return by, None
        return None, "SURVIVED"
    except Failed as failed:
        return None, str(failed)
    finally:
        shop.clean()


def check_texts():
    bad = 0
    listed = open("docs/MUTANTS.md").read() if os.path.exists("docs/MUTANTS.md") else ""
    for number, mutant in enumerate(MUTANTS, 1):
        found = open(mutant.path).read().count(mutant.old)
        if found != 1:
            print(f"{number}: {mutant.path}: the text is found {found} times: {mutant.old!r}")
        if mutant.fault not in listed:
            print(f"{number}: docs/MUTANTS.md does not list: {mutant.fault}")
        bad += found != 1 or mutant.fault not in listed
    print(f"mutants: {len(MUTANTS)} texts, {bad} wrong")
    return bad


def baseline(tree):
    """The same way of building, with the right texts, passes: what kills is the fault."""
    shop = Workshop(tree, 0, None)
    shop.compile_sets(SETS["all"])
    for program in PROGRAMS:
        by = killer(program, shop.program(program), True)
        if by is not None:
            sys.exit(f"without a fault: {by} fails")
    shop.clean()


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    os.chdir(ROOT)
    bad = check_texts()
    if options.check or bad:
        return 1 if bad else 0
    flags = set(re.search(r"^flags\s*:(.*)$", open("/proc/cpuinfo").read(), re.M).group(1).split())
    if not {"avx2", "fma", "f16c"} <= flags:
        sys.exit("mutants: needs an x86 CPU with AVX2, FMA and F16C")
    widest = "avx512" if {"avx512_vnni", "avx512vbmi", "gfni", "avx512bw", "avx512dq", "avx512vl"} <= flags else "avx2"
    start = time.time()
    tree = Tree(options.jobs)
    baseline(tree)
    print(f"built, and passes without a fault ({time.time() - start:.0f} s); the widest set is {widest}", flush=True)
    wanted = [int(n) for n in options.only.split(",") if n] or list(range(1, len(MUTANTS) + 1))
    unused = [n for n in wanted if MUTANTS[n - 1].where == "avx512" and widest != "avx512"]
    for number in unused:
        print(f"not run: {number} {MUTANTS[number - 1].path}: this CPU has no such set", flush=True)
    wanted = [n for n in wanted if n not in unused]
    lock, rows, built = threading.Lock(), {}, time.time()

    def work(number):
        begun = time.time()
        mutant = MUTANTS[number - 1]
        by, error = examine(tree, number, mutant, widest)
        with lock:
            rows[number] = by
            left = (time.time() - built) / len(rows) * (len(wanted) - len(rows))
            print(f"[{len(rows)}/{len(wanted)}, {time.time() - start:.0f} s, about {left:.0f} s left] {number} {mutant.path}: "
                  f"{mutant.fault}: {'killed by ' + by if by else error} ({time.time() - begun:.0f} s)", flush=True)
        return by is None

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        lost = sum(pool.map(work, wanted))
    with open(f"{BUILD}/mutants.md", "w") as table:
        for number in sorted(rows):
            m = MUTANTS[number - 1]
            where = f"{os.path.basename(m.path)}{', ' + m.where if m.where else ''}"
            table.write(f"| {number} | {where} | {m.fault} | {rows[number]} |\n")
    print(f"{len(rows) - lost} killed, {lost} not ({time.time() - start:.0f} s); the table is {BUILD}/mutants.md")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
