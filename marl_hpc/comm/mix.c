/* y[i] = sum over k of weights[k] * x[columns[k]], rows of `width` numbers of type NUMBER: columns are summed a tile at a time, in
   registers, in the order of k, and each tile is written once. Products are fused with their sums, so that the result has the same bits
   however wide the vectors of a processor are. Rows are gone through whole: in blocks of columns, which would find more of what neighbors
   share in the cache, memory is read in pieces too short to be fetched ahead, and that costs more. */
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#ifndef __FMA__
#error "this processor can't fuse a product with its sum"
#endif
#endif

#if defined(__AVX512F__)
#define BYTES 64
#define STREAM(to, sum) _mm512_stream_si512((__m512i *)(to), (__m512i)(sum))
#elif defined(__AVX__)
#define BYTES 32
#define STREAM(to, sum) _mm256_stream_si256((__m256i *)(to), (__m256i)(sum))
#else
#define BYTES 16
#define STREAM(to, sum) (*(vector *)(to) = (sum))
#endif

typedef NUMBER vector __attribute__((vector_size(BYTES), aligned(sizeof(NUMBER)), may_alias));
enum { LANES = BYTES / sizeof(NUMBER), TILE = 4 * LANES };

typedef struct {
  const int32_t *columns;
  const NUMBER *weights;
  int32_t first, last;
} row;

static inline void one(row r, const NUMBER *x, int64_t width, NUMBER *to) {
  vector a = {0};
  for (int32_t k = r.first; k < r.last; k++) a += r.weights[k] * *(const vector *)(x + r.columns[k] * width);
  *(vector *)to = a;
}

static inline void tile(row r, const NUMBER *x, int64_t width, NUMBER *to, int streaming) {
  vector a = {0}, b = {0}, c = {0}, d = {0};
  for (int32_t k = r.first; k < r.last; k++) {
    const vector *v = (const vector *)(x + r.columns[k] * width);
    NUMBER w = r.weights[k];
    a += w * v[0], b += w * v[1], c += w * v[2], d += w * v[3];
  }
  if (streaming) {
    STREAM(to, a), STREAM(to + LANES, b), STREAM(to + 2 * LANES, c), STREAM(to + 3 * LANES, d);
  } else {
    vector *y = (vector *)to;
    y[0] = a, y[1] = b, y[2] = c, y[3] = d;
  }
}

/* `streaming`: y is written past the caches, where it is too large to be found there again. */
void mix(const int32_t *starts, const int32_t *columns, const NUMBER *weights, int64_t rows, const NUMBER *x, NUMBER *y, int64_t width,
         int streaming) {
  for (int64_t i = 0; i < rows; i++) {
    row r = {columns, weights, starts[i], starts[i + 1]};
    NUMBER *to = y + i * width;
    int64_t c = 0;
    if (width < LANES) {
      for (; c < width; c++) {
        NUMBER sum = 0;
        for (int32_t k = r.first; k < r.last; k++)
          sum = sizeof(NUMBER) == 4 ? __builtin_fmaf(weights[k], x[columns[k] * width + c], sum)
                                    : __builtin_fma(weights[k], x[columns[k] * width + c], sum);
        to[c] = sum;
      }
      continue;
    }
    int64_t off = streaming ? (-(uintptr_t)to & (BYTES - 1)) / sizeof(NUMBER) : 0;
    if (off) { /* up to where streaming may begin; some columns are summed twice, to the same bits */
      one(r, x, width, to);
      c = off;
    }
    for (; c + TILE <= width; c += TILE) tile(r, x + c, width, to + c, streaming);
    for (; c + LANES <= width; c += LANES) one(r, x + c, width, to + c);
    if (c < width) one(r, x + width - LANES, width, to + width - LANES);
  }
#if defined(__x86_64__)
  if (streaming) _mm_sfence();
#endif
}
