/*
 * What all programs share: helpers, the maps by name, and what a packet says. Follows the declarations of layout.py and
 * of flows.py and the list of maps that the driver writes. A program reads a packet by pointers (data, end), so that tc
 * and XDP programs share all of this; what it cannot see whole is left to the stack.
 */
#define INLINE static __attribute__((always_inline)) inline
#define MAP(name) ((void *)bpf_pseudo_fd(1, MAP_##name))

/* Helpers by number (include/uapi/linux/bpf.h): bcc's own declarations are made for its own maps. */
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static u64 (*clock_ns)(void) = (void *)160; /* coarse: a tick of the kernel's */
static long (*ring_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;

enum { TCP = 6, UDP = 17, SCTP = 132, ICMP4 = 1, ICMP6 = 58 };
enum { IPV4 = 0x0008, IPV6 = 0xdd86, ARP = 0x0608 }; /* as a frame has them */
enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };
enum { ECHO_REPLY4 = 0, ECHO4 = 8, ECHO6 = 128, ECHO_REPLY6 = 129 };
enum { INIT = 1, ABORT = 6, SHUTDOWN = 7, SHUTDOWN_ACK = 8, SHUTDOWN_DONE = 14 };
enum { WHOLE, FIRST_PART, LATER_PART };
#define ETHERNET 14
/* One register from here on: the verifier knows the bounds of that, not of the same computed again. */
#define KEEP(pointer) asm volatile("" : "+r"(pointer))

struct ethernet { u8 to[6], from[6]; u16 protocol; };
struct ip4 { u8 head, tos; u16 size, id, offset; u8 hops, protocol; u16 sum; u32 from, to; };
struct ip6 { u32 head; u16 size; u8 protocol, hops; struct address from, to; };
struct ip6_extension { u8 next, size; u16 offset; u32 id; }; /* as a fragment header has it */

/* What a packet says. Ports are those of flows: an echo's are its number, on the side that asks, and 0. */
struct packet {
    struct address from, to;
    u16 from_port, to_port;
    u8 protocol;
    u8 part;    /* of a fragmented one */
    u8 options; /* the IP header is not a plain one */
    u8 begins;  /* it can only be the first one of a connection */
    u8 known;   /* protocol and ports can be tracked */
    u8 seen;    /* what this says of the connection's state: bits as in struct flow */
    u8 error;   /* an ICMP error, which quotes a packet */
    u8 kind;    /* ICMP type */
    u8 unread;  /* there is a transport header, but it cannot be seen */
    u8 pad;
    u16 l4;     /* where the transport header is */
    u16 headers; /* bytes of IP and transport headers */
};

/* Of one side of a connection. */
enum { BEGAN = 1, ANSWERED = 2, ENDED = 4, RESET = 8 };

INLINE void map4(struct address *a, u32 ip) {
    a->w[0] = a->w[1] = 0;
    a->w[2] = 0xffff0000;
    a->w[3] = ip;
}

INLINE int is4(struct address *a) { return !a->w[0] && !a->w[1] && a->w[2] == 0xffff0000; }

INLINE int same_address(struct address *a, struct address *b) {
    return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

INLINE int same_mac(const u8 *a, const u8 *b) {
    return !((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) | (a[5] ^ b[5]));
}

/* Ports and meaning of the transport header at a place. 0: it cannot be seen. */
INLINE int transport(struct packet *p, void *data, void *end) {
    u8 *l4 = data;
    KEEP(l4);
    if ((void *)(l4 + 8) > end)
        return 0;
    u16 *ports = (void *)l4;
    if (p->protocol == TCP) {
        if ((void *)(l4 + 20) > end)
            return 0;
        u8 flags = l4[13] & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST);
        p->begins = flags == TCP_SYN;
        p->seen = p->begins ? BEGAN : ANSWERED;
        if (flags & TCP_FIN)
            p->seen |= ENDED;
        if (flags & TCP_RST)
            p->seen |= RESET;
        p->headers += (l4[12] >> 4) * 4;
    } else if (p->protocol == UDP) {
        p->seen = ANSWERED;
        p->headers += 8;
    } else if (p->protocol == SCTP) {
        if ((void *)(l4 + 13) > end)
            return 0;
        u8 chunk = l4[12];
        p->begins = chunk == INIT;
        p->seen = p->begins ? BEGAN : ANSWERED;
        if (chunk == SHUTDOWN || chunk == SHUTDOWN_ACK)
            p->seen |= ENDED;
        if (chunk == ABORT || chunk == SHUTDOWN_DONE)
            p->seen |= RESET;
        p->headers += 12;
    } else if (p->protocol == ICMP4 || p->protocol == ICMP6) {
        int v6 = p->protocol == ICMP6;
        p->kind = l4[0];
        u16 number = ports[2];
        p->headers += 8;
        if (p->kind == (v6 ? ECHO6 : ECHO4)) {
            p->from_port = number;
            p->seen = ANSWERED;
            p->begins = 1;
        } else if (p->kind == (v6 ? ECHO_REPLY6 : ECHO_REPLY4)) {
            p->to_port = number;
            p->seen = ANSWERED;
        } else {
            p->error = v6 ? p->kind && p->kind <= 4 : p->kind == 3 || p->kind == 11 || p->kind == 12;
            return 1;
        }
        p->known = number != 0;
        return 1;
    } else {
        return 1;
    }
    p->from_port = ports[0];
    p->to_port = ports[1];
    p->known = 1;
    return 1;
}

/* An IPv4 packet at a place. 0: that is none. */
INLINE int parse4(struct packet *p, void *data, u32 at, void *end) {
    struct ip4 *ip = data + at;
    KEEP(ip);
    if ((void *)(ip + 1) > end || ip->head >> 4 != 4)
        return 0;
    u32 size = (ip->head & 15) * 4;
    if (size < sizeof(*ip))
        return 0;
    map4(&p->from, ip->from);
    map4(&p->to, ip->to);
    p->protocol = ip->protocol;
    p->options = size != sizeof(*ip);
    u16 offset = __builtin_bswap16(ip->offset);
    p->part = offset & 0x1fff ? LATER_PART : offset & 0x2000 ? FIRST_PART : WHOLE;
    p->l4 = at + size;
    p->headers = size;
    if (p->part != LATER_PART && p->protocol != ICMP6)
        p->unread = !transport(p, (void *)ip + size, end);
    return 1;
}

/* An IPv6 packet at a place: up to three extension headers are passed over. 0: that is none. */
INLINE int parse6(struct packet *p, void *data, u32 at, void *end) {
    struct ip6 *ip = data + at;
    KEEP(ip);
    if ((void *)(ip + 1) > end || (ip->head & 0xf0) != 0x60)
        return 0;
    p->from = ip->from;
    p->to = ip->to;
    u8 next = ip->protocol;
    u32 size = sizeof(*ip);
    if (is4(&p->from) || is4(&p->to))
        return 0; /* no such addresses are on the wire; they would meet IPv4's rows */
#pragma unroll
    for (int i = 0; i < 3; i++) {
        if (next != 0 && next != 60 && next != 43 && next != 44)
            break;
        struct ip6_extension *x = (void *)ip + size;
        KEEP(x);
        p->options = 1;
        if ((void *)(x + 1) > end)
            break;
        if (next == 44) {
            u16 offset = __builtin_bswap16(x->offset);
            p->part = offset & 0xfff8 ? LATER_PART : offset & 1 ? FIRST_PART : WHOLE;
            size += 8;
        } else {
            size += (x->size + 1) * 8;
        }
        next = x->next;
        if (size > 512 || p->part == LATER_PART)
            break;
    }
    p->protocol = next;
    p->l4 = at + size;
    p->headers = size;
    if (size > 512 || (next == 0 || next == 60 || next == 43 || (next == 44 && p->part != LATER_PART)))
        p->unread = 1;
    else if (p->part != LATER_PART && next != ICMP4)
        p->unread = !transport(p, (void *)ip + size, end);
    return 1;
}
