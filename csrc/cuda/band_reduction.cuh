// Householder reduction of a symmetric matrix in shared memory to a band, kBand columns a step, with the tensor cores.
// Of a panel of columns one warp finds the reflectors, Q = I - V T V', and all warps apply them from both sides,
//   X = V T,  Y = A X,  S = X' Y,  W = Y - V S / 2,  Q' A Q = A - V W' - W V'
// (Bischof, Lang, Sun, ACM Trans. Math. Softw. 26, 2000): to the next panel first, so that one warp can take its
// reflectors while the others do the rest. Products are taken in 3 x TF32, see cuda/product.cuh, and summed in float32.
// SPDX-License-Identifier: MIT
#pragma once
#include <type_traits>

#include "cuda/reflector.cuh"
#include "cuda/tiles.cuh"

namespace hrel::cuda {

// Of one step, in shared memory.
template <int kSize_, int kWarps_>
struct alignas(16) Panel {
  static constexpr int kSize = kSize_, kWarps = kWarps_, kThreads = kWarps * kWarp;
  static constexpr int kRowTiles = kSize / kTileSize / kWarps;  // of one warp
  static_assert(kRowTiles * kWarps * kTileSize == kSize && kWarps > 1);

  float v[2][kSize][kBand];   // which take turns
  float w[kSize][kBand];      // holds Y on the way
  float x[kBand][kSize + 4];  // transposed; the pitch keeps rows and columns apart in the banks
  float s[kWarps][kWarp][2];  // the parts of S from each warp's rows, as fragments
};

// The parts (rank_one[k] / n_k) 1_k 1_k' of a matrix, k < count, 1_k being 1 on the n_k rows with owner[row] = k. Rows
// of none have an owner < 0.
template <int kSize>
struct RankOneParts {
  int owner[kSize];
  float rank_one[kBand];
  int count;
};

// A fragment of the left operand, a 16 x 8 tile, or of the right one, in high and low parts. The order of the eight
// inner places is free as long as both operands share it: lane % 4 takes two neighbours of them.
template <int kValues>
struct SplitFragment {
  std::uint32_t high[kValues], low[kValues];

  __device__ __forceinline__ void set(int i, float value) { split_tf32(value, high[i], low[i]); }
};
using LeftFragment = SplitFragment<4>;
using RightFragment = SplitFragment<2>;

// part = a b; small products first.
__device__ __forceinline__ void multiply_split(float (&part)[4], LeftFragment const& a, RightFragment const& b) {
  product_tf32(part, a.low, b.high);
  multiply_tf32(part, a.high, b.low);
  multiply_tf32(part, a.high, b.high);
}

__device__ __forceinline__ float2& pair_at(float* place) { return *reinterpret_cast<float2*>(place); }
__device__ __forceinline__ float2 pair_at(float const* place) { return *reinterpret_cast<float2 const*>(place); }

// Of rows of kBand elements: those of `row` and `row` + 8 as a left operand, that of `row` as a right one.
__device__ __forceinline__ LeftFragment left_fragment(float const (*rows)[kBand], int row, int pair) {
  float2 const upper = pair_at(rows[row] + pair), lower = pair_at(rows[row + 8] + pair);
  LeftFragment fragment;
  fragment.set(0, upper.x);
  fragment.set(1, lower.x);
  fragment.set(2, upper.y);
  fragment.set(3, lower.y);
  return fragment;
}
__device__ __forceinline__ RightFragment right_fragment(float2 const& pair) {
  RightFragment fragment;
  fragment.set(0, pair.x);
  fragment.set(1, pair.y);
  return fragment;
}

template <class Panel_>
struct BandReduction {
  using Panel = Panel_;
  static constexpr int kThreads = Panel::kThreads, kWarps = Panel::kWarps, kRowTiles = Panel::kRowTiles;
  static constexpr int kRowsPerLane = Panel::kSize / kWarp;

  using Parts = RankOneParts<Panel::kSize>;

  // The band of A takes the place of A less its parts of rank one, in tiles of n rows. They are kept out because they
  // may be all there is (a dead filter): their rounding would hide the rest. They belong to the elements (k, k), to
  // which the first step takes 1_k: rank_one[k] is still to be added there. A barrier comes before the matrix is read,
  // and one after the band is written.
  //
  // Warps change places with every step, so that those which wait for reflectors, and those which find them, are not
  // the same ones in all blocks of a multiprocessor, each of whose warps has the same of its four schedulers.
  static __device__ __forceinline__ void run(float* matrix, int n, Parts const& ones, Panel& p, int place, int lane) {
    int const tiles = num_tiles(n);
    int turn = 0;
    // Reflectors of the columns from `next` on, which change the rows and columns from `first` on; at first, of the
    // ones.
#pragma unroll 1
    for (int next = -kBand, first = 0; first < n; next += kBand, first += kBand, turn ^= 1) {
      if (place == 0) {
        factor_panel(matrix, n, ones, next, p.v[turn], p.x, lane);
      } else if (next >= 0) {
        update_rest(matrix, tiles, next, p.v[turn ^ 1], p.w, place - 1, lane);
      }
      barrier<kThreads>();  // V and X are written, and so is A
      multiply(matrix, tiles, first, p, p.v[turn], place, lane);
      update_panel(matrix, tiles, first, p.v[turn], p.w, place, lane);
      place = (place + 1) % kWarps;
      barrier<kThreads>();  // the next panel is written; in the end, the band
    }
  }

  // Element (row, column) of the band that run has left, column <= row; 0 past the last row, or before the first
  // column.
  static __device__ __forceinline__ float band_element(float const* matrix, int n, int row, int column) {
    bool const inside = row < n && column >= 0;
    float const element = matrix[inside ? tiled_offset(row, column) : 0];
    return inside ? element : 0;
  }

 private:
  using Rows = float[Panel::kSize][kBand];

  // By one warp, the reflectors of the columns next .. next + kBand - 1 of the rows below, or of the ones. The triangle
  // that the columns become takes their place.
  static __device__ __forceinline__ void factor_panel(float* matrix, int n, Parts const& ones, int next, Rows& v,
                                                      float (&x)[kBand][Panel::kSize + 4], int lane) {
    int const first = next + kBand;
    float panel[kRowsPerLane][kBand], turned[kRowsPerLane][kBand], beta = 0;
    if (next < 0) {
#pragma unroll
      for (int q = 0; q < kRowsPerLane; ++q) {
        int const owner = ones.owner[q * kWarp + lane];
#pragma unroll
        for (int c = 0; c < kBand; ++c) panel[q][c] = owner == c ? 1 : 0;
      }
    } else {
#pragma unroll
      for (int q = 0; q < kRowsPerLane; ++q) {
        int const row = first + q * kWarp + lane;
        read_row(matrix + tiled_offset(row < n ? row : first, next), panel[q]);
#pragma unroll
        for (int c = 0; c < kBand; ++c) panel[q][c] = row < n ? panel[q][c] : 0;
      }
    }
    factor(panel, turned, beta, lane);

    float triangle[kBand];  // what is below it is not read
#pragma unroll
    for (int c = 0; c < kBand; ++c) {
      triangle[c] = lane == c ? beta : panel[0][c];
      panel[0][c] = lane < c ? 0 : panel[0][c];
    }
    if (next >= 0 && lane < kBand && first + lane < n) write_row(triangle, matrix + tiled_offset(first + lane, next));
    if (first % kTileSize != 0 && lane < kBand) {  // the rows of the columns themselves share the first tile
      float const none[kBand] = {};
      write_row(none, v[next + lane]);
#pragma unroll
      for (int c = 0; c < kBand; ++c) x[c][next + lane] = 0;
    }
    int const end = num_tiles(n) * kTileSize;
#pragma unroll
    for (int q = 0; q < kRowsPerLane; ++q) {
      int const row = first + q * kWarp + lane;
      if (row >= end) break;
      write_row(panel[q], v[row]);
#pragma unroll
      for (int c = 0; c < kBand; ++c) x[c][row] = turned[q][c];
    }
  }

  // Rows of kBand elements.
  static __device__ __forceinline__ void read_row(float const* place, float (&row)[kBand]) {
#pragma unroll
    for (int c = 0; c < kBand; c += 4) {
      float4 const four = *reinterpret_cast<float4 const*>(place + c);
      row[c] = four.x, row[c + 1] = four.y, row[c + 2] = four.z, row[c + 3] = four.w;
    }
  }
  static __device__ __forceinline__ void write_row(float const (&row)[kBand], float* place) {
#pragma unroll
    for (int c = 0; c < kBand; c += 4) {
      *reinterpret_cast<float4*>(place + c) = float4{row[c], row[c + 1], row[c + 2], row[c + 3]};
    }
  }

  // Row i + kWarp q of the panel in panel[q] of lane i, 0 past the last one. The reflectors take the place of the panel
  // on and below its diagonal, of which lane i gets element i of the triangle in `beta`; x becomes V T.
  static __device__ __forceinline__ void factor(float (&panel)[kRowsPerLane][kBand], float (&x)[kRowsPerLane][kBand],
                                                float& beta, int lane) {
#pragma unroll
    for (int j = 0; j < kBand; ++j) {
      // Sums over the rows below j of products of column j: with the reflectors found so far, itself, the columns left.
      float const below = lane > j ? panel[0][j] : 0;
      float sums[kBand], top[kBand];  // and row j
#pragma unroll
      for (int c = 0; c < kBand; ++c) {
        top[c] = __shfl_sync(kAllLanes, panel[0][c], j);
        sums[c] = below * panel[0][c];
      }
#pragma unroll
      for (int q = 1; q < kRowsPerLane; ++q) {
#pragma unroll
        for (int c = 0; c < kBand; ++c) sums[c] += panel[q][j] * panel[q][c];
      }
      float const tail = warp_sum(sums[j]);  // which all else waits for: not from the halves of sum_columns
      sum_columns(sums, lane);
      Reflector const reflector(top[j], tail);
      float const scale = reflector.scale, u_j = reflector.first, inverse_h = reflector.inverse_h;
      if (lane == j) beta = reflector.beta;
      float along[kBand];  // u' of the columns, and of the reflectors found so far
#pragma unroll
      for (int c = 0; c < kBand; ++c) along[c] = scale * sums[c] + u_j * top[c];
#pragma unroll
      for (int q = 0; q < kRowsPerLane; ++q) {
        float const u = q > 0 ? panel[q][j] * scale : lane == j ? u_j : below * scale, weighted = u * inverse_h;
        float turned = u;  // X = V T by substitution: T^-1 has the h on its diagonal and V'V above it
#pragma unroll
        for (int c = 0; c < j; ++c) turned -= x[q][c] * along[c];
        x[q][j] = turned * inverse_h;
#pragma unroll
        for (int c = j + 1; c < kBand; ++c) panel[q][c] -= weighted * along[c];
        panel[q][j] = q == 0 && lane < j ? panel[q][j] : u;  // above it lies the triangle
      }
    }
  }

  // Sums each of the eight values over a warp, for all lanes. Each exchange halves the number of values per lane, so
  // that nine of them and one for each value to come back do for eight sums.
  static __device__ __forceinline__ void sum_columns(float (&sums)[kBand], int lane) {
    float four[4], two[2];
    bool const fourth = (lane & 16) != 0, third = (lane & 8) != 0, second = (lane & 4) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      four[i] = (fourth ? sums[i + 4] : sums[i]) + __shfl_xor_sync(kAllLanes, fourth ? sums[i] : sums[i + 4], 16);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      two[i] = (third ? four[i + 2] : four[i]) + __shfl_xor_sync(kAllLanes, third ? four[i] : four[i + 2], 8);
    }
    float one = (second ? two[1] : two[0]) + __shfl_xor_sync(kAllLanes, second ? two[0] : two[1], 4);
    one += __shfl_xor_sync(kAllLanes, one, 2);
    one += __shfl_xor_sync(kAllLanes, one, 1);
#pragma unroll
    for (int c = 0; c < kBand; ++c) sums[c] = __shfl_sync(kAllLanes, one, c * 4);
  }

  // y[slot] = A X for the kSlots rows of tiles from `row` on, kWarps apart.
  template <int kSlots>
  static __device__ __forceinline__ void multiply_rows(float const* matrix, int tiles, int first_tile, int row,
                                                       float const (*x)[Panel::kSize + 4], float (&y)[kSlots][4],
                                                       int lane) {
    int const group = lane / 4, pair = lane % 4 * 2;
    int offset[kSlots];  // of the tile (row, column), or, above the diagonal, (column, row)
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) offset[slot] = tile_offset(row + slot * kWarps, first_tile);
#pragma unroll 2
    for (int column = first_tile; column < tiles; ++column) {
      RightFragment right[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        right[half] = right_fragment(pair_at(&x[group][column * kTileSize + half * kHalfColumns + pair]));
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        int const own_row = row + slot * kWarps;
        bool const below = column <= own_row;
        float const* const elements = matrix + offset[slot] + (below ? group * 8 + pair : pair * 8 + group);
        int const eight_down = below ? kHalfElements / 2 : kHalfElements,
                  eight_right = kHalfElements * 3 / 2 - eight_down;
        int const one_right = below ? 1 : kHalfColumns;
        float part[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          LeftFragment left;
          float const* const here = elements + half * eight_right;
          left.set(0, here[0]);
          left.set(1, here[eight_down]);
          left.set(2, here[one_right]);
          left.set(3, here[eight_down + one_right]);
          multiply_split(part[half], left, right[half]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) y[slot][i] += part[0][i] + part[1][i];
        offset[slot] += column < own_row ? kTileElements : (column + 1) * kTileElements;
      }
    }
  }

  // Calls visit(slots) with the number of row tiles from the first one on that belong to the warp: 0 to kRowTiles, a
  // constant, so that they are worked on side by side.
  template <class Visit>
  static __device__ __forceinline__ void with_slots(int tiles, int row, Visit const& visit) {
    static_assert(kRowTiles == 2);
    if (row + kWarps < tiles) {
      visit(std::integral_constant<int, 2>{});
    } else if (row < tiles) {
      visit(std::integral_constant<int, 1>{});
    }
  }

  // W of the rows from `first` on, 0 before.
  static __device__ __forceinline__ void multiply(float const* matrix, int tiles, int first, Panel& p, Rows const& v,
                                                  int warp, int lane) {
    int const first_tile = first / kTileSize, row = first_tile + warp, group = lane / 4, pair = lane % 4 * 2;
    float y[kRowTiles][4] = {};
    float2 s{0, 0};
    with_slots(tiles, row, [&]<int kSlots>(std::integral_constant<int, kSlots>) {
      float of_slots[kSlots][4] = {};
      multiply_rows<kSlots>(matrix, tiles, first_tile, row, p.x, of_slots, lane);
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        int const at = (row + slot * kWarps) * kTileSize + group;
        pair_at(p.w[at] + pair) = {of_slots[slot][0], of_slots[slot][1]};
        pair_at(p.w[at + 8] + pair) = {of_slots[slot][2], of_slots[slot][3]};
#pragma unroll
        for (int i = 0; i < 4; ++i) y[slot][i] = of_slots[slot][i];
      }
      __syncwarp();  // the warp's rows of Y are written
      float part[kSlots][2][4];
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          int const inner = (row + slot * kWarps) * kTileSize + half * kHalfColumns + pair;
          float2 const above = pair_at(&p.x[group][inner]);
          LeftFragment left;  // of eight rows
          left.set(0, above.x);
          left.set(1, 0);
          left.set(2, above.y);
          left.set(3, 0);
          multiply_split(part[slot][half], left, right_fragment({p.w[inner][group], p.w[inner + 1][group]}));
        }
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        s.x += part[slot][0][0] + part[slot][1][0];
        s.y += part[slot][0][1] + part[slot][1][1];
      }
    });
    pair_at(p.s[warp][lane]) = s;
    barrier<kThreads>();  // the parts of S are written

    // S is symmetric, so that the fragment of a result is that of a right operand.
    float2 half_s{0, 0};
#pragma unroll
    for (int q = 0; q < kWarps; ++q) {
      float2 const part = pair_at(p.s[q][lane]);
      half_s.x += part.x * 0.5f;
      half_s.y += part.y * 0.5f;
    }
    RightFragment const right = right_fragment(half_s);
    with_slots(tiles, row, [&]<int kSlots>(std::integral_constant<int, kSlots>) {
      float part[kSlots][4];
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        multiply_split(part[slot], left_fragment(v, (row + slot * kWarps) * kTileSize + group, pair), right);
      }
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        int const at = (row + slot * kWarps) * kTileSize + group;
        float2 const upper{y[slot][0] - part[slot][0], y[slot][1] - part[slot][1]};
        pair_at(p.w[at] + pair) = at >= first ? upper : float2{0, 0};
        pair_at(p.w[at + 8] + pair) = {y[slot][2] - part[slot][2], y[slot][3] - part[slot][3]};
      }
    });
    barrier<kThreads>();  // W is written
  }

  // Halves of tiles, eight columns of them: A <- A - V W' - W V'.
  template <int kCount>
  static __device__ __forceinline__ void update(float* const (&elements)[kCount], LeftFragment const (&v_left)[kCount],
                                                LeftFragment const (&w_left)[kCount],
                                                RightFragment const (&v_right)[kCount],
                                                RightFragment const (&w_right)[kCount]) {
    float part[kCount][2][4];
#pragma unroll
    for (int q = 0; q < kCount; ++q) {
      multiply_split(part[q][0], v_left[q], w_right[q]);
      multiply_split(part[q][1], w_left[q], v_right[q]);
    }
#pragma unroll
    for (int q = 0; q < kCount; ++q) {
      float2 &upper = pair_at(elements[q]), &lower = pair_at(elements[q] + kHalfElements / 2);
      upper = {upper.x - (part[q][0][0] + part[q][1][0]), upper.y - (part[q][0][1] + part[q][1][1])};
      lower = {lower.x - (part[q][0][2] + part[q][1][2]), lower.y - (part[q][0][3] + part[q][1][3])};
    }
  }

  // The columns next .. next + kBand - 1, by all warps.
  static __device__ __forceinline__ void update_panel(float* matrix, int tiles, int next, Rows const& v, Rows const& w,
                                                      int warp, int lane) {
    int const first_tile = next / kTileSize, group = lane / 4, pair = lane % 4 * 2, row = first_tile + warp;
    RightFragment const of_v = right_fragment(pair_at(v[next + group] + pair));
    RightFragment const of_w = right_fragment(pair_at(w[next + group] + pair));
    with_slots(tiles, row, [&]<int kSlots>(std::integral_constant<int, kSlots>) {
      float* elements[kSlots];
      LeftFragment v_left[kSlots], w_left[kSlots];
      RightFragment v_right[kSlots], w_right[kSlots];
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        int const own_row = row + slot * kWarps, at = own_row * kTileSize + group;
        elements[slot] = matrix + tile_offset(own_row, first_tile) + next / kHalfColumns % 2 * kHalfElements +
                         group * kHalfColumns + pair;
        v_left[slot] = left_fragment(v, at, pair), w_left[slot] = left_fragment(w, at, pair);
        v_right[slot] = of_v, w_right[slot] = of_w;
      }
      update(elements, v_left, w_left, v_right, w_right);
    });
  }

  // The columns after them, by the kWarps - 1 other warps.
  static __device__ __forceinline__ void update_rest(float* matrix, int tiles, int next, Rows const& v, Rows const& w,
                                                     int warp, int lane) {
    int const group = lane / 4, pair = lane % 4 * 2, rest = next + kBand;
    int const first_tile = rest / kTileSize;
    int row = first_tile, column = first_tile + warp;
#pragma unroll 1
    while (true) {
      for (; column > row && row < tiles; ++row) column -= row + 1 - first_tile;
      if (row >= tiles) break;
      int const at = row * kTileSize + group;
      LeftFragment const of_v = left_fragment(v, at, pair), of_w = left_fragment(w, at, pair);
      float* const tile = matrix + tile_offset(row, column) + group * kHalfColumns + pair;
      float* const elements[2] = {tile, tile + kHalfElements};
      RightFragment v_right[2], w_right[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int const other = column * kTileSize + half * kHalfColumns + group;
        v_right[half] = right_fragment(pair_at(v[other] + pair));
        w_right[half] = right_fragment(pair_at(w[other] + pair));
      }
      if (column == first_tile && rest % kTileSize != 0) {  // the panel is the first half
        update<1>({elements[1]}, {of_v}, {of_w}, {v_right[1]}, {w_right[1]});
      } else {
        update<2>(elements, {of_v, of_v}, {of_w, of_w}, v_right, w_right);
      }
      column += kWarps - 1;
    }
  }
};

}  // namespace hrel::cuda
