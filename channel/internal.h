/* SPDX-License-Identifier: BSD-3-Clause */
/* What the files of channel/ share. */
#ifndef OB_CHANNEL_INTERNAL_H
#define OB_CHANNEL_INTERNAL_H

#include "channel/channel.h"

void ob_channel_drop_queue(struct ob_channel *ch);

#endif
