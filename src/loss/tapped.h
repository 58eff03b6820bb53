/* tapped.h - what the files of terms over taps share; private to loss. */
#ifndef KD_LOSS_TAPPED_H
#define KD_LOSS_TAPPED_H

#include "loss/loss.h"

/* Which taps a type reads. */
typedef enum kd_tapped_form {
    KD_TAPPED_FEATURES, /* rows of hidden taps */
    KD_TAPPED_HEADS,    /* queries, keys or values */
    KD_TAPPED_MAPS,     /* queries and keys */
} kd_tapped_form;

kd_tapped_form kd_tapped_form_of(const kd_feature_type *type);

/* What the loss trains of its own; NULL: nothing. */
const kd_read *kd_tapped_parameter(const kd_feature_type *type);

/* The first read from `from` on that the loss keeps; NULL: none. */
const kd_read *kd_tapped_state(const kd_read *from);

#endif
