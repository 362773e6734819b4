/* How scratch memory is divided; shared by the templates and by fnn_scratch_bytes. */
#ifndef FNN_LAYOUT_H
#define FNN_LAYOUT_H
/* A packed panel: FNN_BLOCK rows of at most 128 bytes. */
#define FNN_PANEL_BYTES (FNN_BLOCK * 128)
/* A gradient tile: at most 12 rows of a group of 1024 bytes, and the narrow layers' transposed copy. */
#define FNN_TILE_BYTES (12 * 1024 + 4096)
/* A loss keeps four vectors of at most 64 bytes for each output. */
#define FNN_LOSS_BYTES_PER_OUTPUT (4 * 64)
#endif
