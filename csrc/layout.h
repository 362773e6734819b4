/* How scratch memory is divided; shared by the templates and by fnn_scratch_bytes. */
#ifndef FNN_LAYOUT_H
#define FNN_LAYOUT_H

/* A packed panel: FNN_BLOCK rows of at most 128 bytes. */
#define FNN_PANEL_BYTES (FNN_BLOCK * 128)
/* Pointers to the rows of a panel. */
#define FNN_POINTERS_BYTES 1024
/* Small work: two narrow tiles. */
#define FNN_WORK_BYTES 4096
/* A loss keeps five vectors of at most 64 bytes for each output. */
#define FNN_LOSS_BYTES_PER_OUTPUT (5 * 64)

/* Rows of W whose gradient is summed together; their columns take at most 512 bytes. */
#define FNN_GRADIENT_ROWS 48
#define FNN_GRADIENT_BYTES ((FNN_BLOCK * 8 + 512) * FNN_GRADIENT_ROWS + 512)

/* What products that skip zeros keep, after all of the above: values, places and counts of 64 chains, unfinished sums of
 * at most 512 bytes each, a block of the other factor. */
#define FNN_KEPT_BYTES (64 * (FNN_BLOCK * 12 + 512 + 32) + 16384)
#define FNN_KEPT_AT FNN_GRADIENT_BYTES

#endif
