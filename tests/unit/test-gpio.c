/* SPDX-License-Identifier: BSD-3-Clause */
/* The PCI-IDIO-16 card, as its driver sees it. */
#include "harness.h"
#include "served.h"

#include <unistd.h>

#define BAR     2
#define SOON_MS 5000
#define NOW     0

enum { OUT0_7, IN0_7, IRQ, FILTER, OUT8_15, IN8_15, STATUS, FILTERED };
#define CLEAR IN0_7 /* where a write goes */

static const char *const loopback[] = { "--loopback", NULL };
static struct served card;

static unsigned get(unsigned reg)
{
    return (unsigned)served_read(&card, BAR, reg, 1);
}

static void set(unsigned reg, unsigned value)
{
    served_write(&card, BAR, reg, 1, value);
}

static void unmask(void)
{
    CHECK_INT(ob_client_irq_mask(card.client, OB_PCI_IRQ_INTX, 0, false), 0);
}

TEST(identity, "identity-is-that-of-the-card")
{
    served_start(&card, &ob_served_gpio, NULL, NULL);
    CHECK_INT(served_read(&card, OB_PCI_REGION_CONFIG, 0, 4), 0x0dc8494f);
    CHECK_INT(served_read(&card, OB_PCI_REGION_CONFIG, 0x18, 4), 1); /* BAR 2: I/O ports */
    CHECK_INT(served_read(&card, OB_PCI_REGION_CONFIG, 0x3d, 1), 1); /* INTA# */
    served_stop(&card);
}

TEST(outputs, "outputs-keep-what-is-written-and-inputs-do-not-follow")
{
    served_start(&card, &ob_served_gpio, NULL, NULL);
    set(OUT0_7, 0x5a);
    set(OUT8_15, 0xc3);
    set(IN8_15, 0xff); /* inputs are not written */
    set(STATUS, 0xff);
    CHECK_INT(get(OUT0_7), 0x5a);
    CHECK_INT(get(OUT8_15), 0xc3);
    CHECK_INT(get(IN0_7), 0);
    CHECK_INT(get(IN8_15), 0);
    CHECK_INT(get(STATUS), 0);
    served_stop(&card);
}

TEST(wide, "wide-access-is-that-of-each-byte")
{
    served_start(&card, &ob_served_gpio, loopback, NULL);
    set(OUT0_7, 0x11);
    served_write(&card, BAR, OUT8_15, 2, 0xff22);
    CHECK_INT(served_read(&card, BAR, OUT8_15, 2), 0x2222);
    CHECK_INT(served_read(&card, BAR, OUT0_7, 2), 0x1111);
    served_stop(&card);
}

TEST(interrupt, "changed-input-interrupts-until-cleared")
{
    served_start(&card, &ob_served_gpio, loopback, NULL);
    int irq = served_irq(&card, OB_PCI_IRQ_INTX);

    get(IRQ); /* reading enables */
    set(OUT0_7, 0x01);
    CHECK(served_signalled(irq, SOON_MS));
    CHECK_INT(get(IN0_7), 0x01);
    CHECK_INT(get(STATUS), 0x5);
    unmask(); /* the line is a level: not cleared, it interrupts again */
    CHECK(served_signalled(irq, SOON_MS));
    set(OUT8_15, 0x80);
    CHECK_INT(get(STATUS), 0x7);
    set(CLEAR, 0);
    CHECK_INT(get(STATUS), 0);
    unmask();
    CHECK(!served_signalled(irq, NOW));
    set(OUT8_15, 0x80); /* the same value again is no change */
    CHECK(!served_signalled(irq, NOW));
    set(OUT8_15, 0);
    CHECK(served_signalled(irq, SOON_MS));
    CHECK_INT(get(STATUS), 0x6);
    close(irq);
    served_stop(&card);
}

TEST(disabled, "disabled-interrupt-stays-silent")
{
    served_start(&card, &ob_served_gpio, loopback, NULL);
    int irq = served_irq(&card, OB_PCI_IRQ_INTX);

    set(OUT0_7, 0xff);
    CHECK_INT(get(STATUS), 0);
    CHECK(!served_signalled(irq, NOW));
    get(IRQ);
    CHECK(!served_signalled(irq, NOW)); /* what happened before is not made up for */
    set(IRQ, 0);
    set(OUT0_7, 0);
    CHECK_INT(get(STATUS), 0);
    CHECK(!served_signalled(irq, NOW));
    close(irq);
    served_stop(&card);
}

TEST(filters, "filters-are-set-and-read-back")
{
    served_start(&card, &ob_served_gpio, NULL, NULL);
    CHECK_INT(get(FILTERED), 0);
    set(FILTERED, 0x24);
    CHECK_INT(get(FILTERED), 0x24);
    get(FILTER); /* reading filters all */
    CHECK_INT(get(FILTERED), 0xff);
    set(FILTER, 0);
    CHECK_INT(get(FILTERED), 0);
    served_stop(&card);
}

TEST(reset, "reset-forgets-what-the-card-was-told")
{
    served_start(&card, &ob_served_gpio, loopback, NULL);
    int irq = served_irq(&card, OB_PCI_IRQ_INTX);

    get(IRQ);
    set(OUT0_7, 0xff);
    CHECK(served_signalled(irq, SOON_MS));
    CHECK_INT(ob_client_reset(card.client), 0);
    CHECK_INT(get(OUT0_7), 0);
    CHECK_INT(get(IN0_7), 0);
    CHECK_INT(get(STATUS), 0);
    set(OUT0_7, 0xff);
    CHECK_INT(get(STATUS), 0); /* its interrupt is disabled again */
    close(irq);
    served_stop(&card);
}

TEST(toggle, "toggle-moves-input-0-by-itself")
{
    static const char *const args[] = { "--toggle-ms", "5", NULL };

    served_start(&card, &ob_served_gpio, args, NULL);
    int irq = served_irq(&card, OB_PCI_IRQ_INTX);

    get(IRQ);
    for (int i = 0; i < 3; i++) {
        CHECK(served_signalled(irq, SOON_MS));
        CHECK_INT(get(STATUS), 0x5);
        set(CLEAR, 0);
        unmask();
    }
    close(irq);
    served_stop(&card);
}

TEST(options, "wrong-option-values-are-refused")
{
    served_refuses(&ob_served_gpio, (const char *const[]){ "--toggle-ms", "x", NULL }, 2,
                   "--toggle-ms takes a number from 1 to 3600000, not 'x'");
    served_refuses(&ob_served_gpio, (const char *const[]){ "--toggle-ms", "3600001", NULL }, 2,
                   "--toggle-ms takes a number from 1 to 3600000, not '3600001'");
}
