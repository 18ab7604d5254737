/*
 * Services for clients outside the node: TCP that the uplink receives for a frontend is sent on to an endpoint, answers
 * that it sends get the frontend's address back. Follows balance.c.
 *
 * Everything behind the program sees a connection between client and endpoint. A connection is taken at its first packet
 * or never: what no entry of CONNS is about goes to the nftables rows, and what they may have seen the first packet of
 * stays theirs (LEFT). Both directions have an entry.
 */
enum { CONNS = OWN, FRAGMENTS, CONFIG, SCRATCH, SOURCES };
enum { LEFT = 1, MARKED = 2, FIN = 4, RESET = 8, ANSWERED = 16 };
enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

#define SECOND 1000000000ull
#define SHORT_NS (130 * SECOND)                   /* over nf_conntrack_tcp_timeout_syn_sent and _time_wait */
#define LONG_NS ((5 * 86400 + 60) * SECOND)       /* over nf_conntrack_tcp_timeout_established */
#define FRAGMENT_NS (30 * SECOND)                 /* net.ipv4.ipfrag_time */
#define NEXT (-1)
#define DROP 2
#define LINK_HEADER 14
#define IPV4 0x0008 /* as skb->protocol has it */
#define IPV6 0xdd86
#define ICMP4 1
#define ICMP6 58
#define PSEUDO 16    /* BPF_F_PSEUDO_HDR */
#define RECOMPUTE 1  /* BPF_F_RECOMPUTE_CSUM */

static long (*map_delete)(void *map, const void *key) = (void *)3;
static long (*store)(void *skb, u32 at, const void *from, u32 size, u64 flags) = (void *)9;
static long (*ip_sum)(void *skb, u32 at, u64 from, u64 to, u64 size) = (void *)10;
static long (*l4_sum)(void *skb, u32 at, u64 from, u64 to, u64 flags) = (void *)11;
static long (*load)(void *skb, u32 at, void *to, u32 size) = (void *)26;
static s64 (*difference)(void *from, u32 from_size, void *to, u32 to_size, u32 seed) = (void *)28;

struct tuple { struct address client, other; u16 client_port, other_port; u8 protocol, answers; u16 pad; };
/* Towards the endpoint: the endpoint's address. Of answers: the frontend's. */
struct conn { struct address addr; u16 port; u8 flags, pad; u32 packets; u64 used; };
struct config { u64 from; u32 mark, ifindex; };
struct fragment_key { struct address from, to; u32 id; };
struct fragment { struct address addr; u64 used; };
struct network { u32 bits; struct address addr; };
struct ip4 { u8 head, tos; u16 size, id, offset; u8 hops, protocol; u16 sum; u32 from, to; };
struct ip6 { u32 head; u16 size; u8 protocol, hops; struct address from, to; };
struct header {
    struct address from, to;
    u16 from_port, to_port;
    u32 l4; /* where it is in the packet */
    u16 id;
    u8 protocol, more, later; /* more and later fragments */
    u8 flags;
    u16 pad;
};
struct scratch { struct work work; struct header outer, inner; };

INLINE void map4(struct address *a, u32 ip) {
    a->w[0] = a->w[1] = 0;
    a->w[2] = 0xffff0000;
    a->w[3] = ip;
}

/* Addresses and protocol of the IP header at a place. 0: leave the packet alone. */
INLINE int network_layer(struct __sk_buff *skb, int v6, u32 at, struct header *h) {
    h->more = h->later = 0;
    h->id = 0;
    if (v6) {
        struct ip6 ip;
        if (load(skb, at, &ip, sizeof(ip)))
            return 0;
        h->from = ip.from;
        h->to = ip.to;
        h->protocol = ip.protocol;
        h->l4 = at + sizeof(ip);
        return 1;
    }
    struct ip4 ip;
    if (load(skb, at, &ip, sizeof(ip)) || ip.head >> 4 != 4 || (ip.head & 15) < 5)
        return 0;
    map4(&h->from, ip.from);
    map4(&h->to, ip.to);
    h->protocol = ip.protocol;
    h->id = ip.id;
    u16 offset = __builtin_bswap16(ip.offset);
    h->more = (offset & 0x2000) != 0;
    h->later = (offset & 0x1fff) != 0;
    h->l4 = at + (ip.head & 15) * 4;
    return 1;
}

/* Another address in the IP header at a place; sum_at: the checksum that covers it besides, 0 for none. */
INLINE long put_address(struct __sk_buff *skb, int v6, u32 at, int source, struct address *was, struct address *now,
                        u32 sum_at, u64 pseudo) {
    struct address to = *now;
    if (v6) {
        s64 change = difference(was, 16, &to, 16, 0);
        if (sum_at && l4_sum(skb, sum_at, 0, change, pseudo))
            return -1;
        /* What the whole packet's sum loses by the checksum it gets by the address, unless that is no pseudo header's. */
        return store(skb, at + (source ? 8 : 24), &to, 16, !sum_at || pseudo ? RECOMPUTE : 0);
    }
    if (sum_at && l4_sum(skb, sum_at, was->w[3], to.w[3], pseudo | 4))
        return -1;
    if (ip_sum(skb, at + 10, was->w[3], to.w[3], 4))
        return -1;
    return store(skb, at + (source ? 12 : 16), &to.w[3], 4, 0);
}

INLINE long put_port(struct __sk_buff *skb, u32 at, u16 was, u16 now, u32 sum_at) {
    if (was == now)
        return 0;
    return l4_sum(skb, sum_at, was, now, 2) || store(skb, at, &now, 2, 0);
}

/* Address and port of one side of a TCP packet; later fragments have the address only. */
INLINE int translate(struct __sk_buff *skb, int v6, struct header *h, int source, struct conn *to) {
    struct fragment_key key = {.from = h->from, .to = h->to, .id = h->id};
    struct address addr = to->addr;
    u16 port = to->port;
    if (h->more) {
        struct fragment fragment = {.addr = addr, .used = ktime()};
        map_update(MAP(FRAGMENTS), &key, &fragment, 0);
    }
    if (put_address(skb, v6, LINK_HEADER, source, source ? &h->from : &h->to, &addr, h->l4 + 16, PSEUDO) ||
        put_port(skb, h->l4 + (source ? 0 : 2), source ? h->from_port : h->to_port, port, h->l4 + 16))
        return DROP;
    return NEXT;
}

INLINE int later_fragment(struct __sk_buff *skb, struct header *h, int source) {
    struct fragment_key key = {.from = h->from, .to = h->to, .id = h->id};
    struct fragment *first = map_lookup(MAP(FRAGMENTS), &key);
    if (!first || ktime() - first->used > FRAGMENT_NS)
        return NEXT;
    return put_address(skb, 0, LINK_HEADER, source, source ? &h->from : &h->to, &first->addr, 0, 0) ? DROP : NEXT;
}

/* A first fragment that is not ours: what an earlier packet of the same number left is not about it. */
INLINE int not_ours(struct header *h) {
    if (h->more) {
        struct fragment_key key = {.from = h->from, .to = h->to, .id = h->id};
        map_delete(MAP(FRAGMENTS), &key);
    }
    return NEXT;
}

INLINE void note(struct conn *c, u8 flags, u64 now) {
    u8 before = c->flags, after = before;
    if (flags & TCP_FIN)
        after |= FIN;
    /* A connection that goes on was not reset: who sent that reset did not know it. */
    after = flags & TCP_RST ? after | RESET : after & ~RESET;
    if (after != before)
        c->flags = after;
    c->packets++;
    c->used = now;
}

/* Whether an entry towards an endpoint is about a connection that is over. */
INLINE int over(struct tuple *key, struct conn *c, u64 now) {
    u64 age = now - c->used;
    if (c->flags & LEFT)
        return age > SHORT_NS;
    struct tuple back = {.client = key->client, .other = c->addr, .client_port = key->client_port,
                         .other_port = c->port, .protocol = key->protocol, .answers = 1};
    struct conn *answers = map_lookup(MAP(CONNS), &back);
    if (!answers || answers->port != key->other_port || !same_address(&answers->addr, &key->other))
        return 1;
    if ((c->flags | answers->flags) & RESET || c->flags & answers->flags & FIN)
        return 1;
    return age > (answers->flags & ANSWERED ? LONG_NS : SHORT_NS);
}

/* A connection to an endpoint itself begins: answers to one from the same port that is over are no longer expected. */
INLINE void direct(struct tuple *key, u64 now) {
    struct tuple back = *key;
    back.answers = 1;
    struct conn *answers = map_lookup(MAP(CONNS), &back);
    if (!answers)
        return;
    struct tuple there = {.client = key->client, .other = answers->addr, .client_port = key->client_port,
                          .other_port = answers->port, .protocol = key->protocol};
    struct conn *c = map_lookup(MAP(CONNS), &there);
    if (!c || c->flags & LEFT || c->port != key->other_port || !same_address(&c->addr, &key->other) ||
        over(&there, c, now))
        map_delete(MAP(CONNS), &back);
}

/* A connection begins. 1: it has entries now. */
INLINE int begin(struct tuple *key, struct scratch *s, u64 now) {
    struct header *h = &s->outer;
    struct conn entry = {.flags = LEFT, .used = now};
    struct frontend row = {.addr = h->to, .port = h->to_port, .protocol = TCP};
    struct meta *m = find_frontend(&row);
    if (!m || !m->count) {
        direct(key, now);
        return 0;
    }
    u32 zero = 0;
    struct config *config = map_lookup(MAP(CONFIG), &zero);
    struct network client = {.bits = 128, .addr = h->from};
    u32 *taken = map_lookup(MAP(SOURCES), &client);
    if (!config || !taken || !*taken)
        return 0;
    struct target to = {};
    if (h->more || now < config->from ||
        !pick(m, &row, fold(&h->from), h->from_port, &to, &s->work)) {
        map_update(MAP(CONNS), key, &entry, 0);
        return 0;
    }
    struct tuple back = {.client = h->from, .other = to.addr, .client_port = h->from_port, .other_port = to.port,
                         .protocol = TCP, .answers = 1};
    struct conn *other = map_lookup(MAP(CONNS), &back);
    if (other && (other->port != h->to_port || !same_address(&other->addr, &h->to))) {
        int open = (other->flags & (ANSWERED | FIN | RESET)) == ANSWERED;
        if (now - other->used < (open ? LONG_NS : SHORT_NS)) {
            /* The client reaches this endpoint from this port by another frontend: nftables finds another port. */
            map_update(MAP(CONNS), key, &entry, 0);
            return 0;
        }
    }
    entry.flags = 0;
    entry.addr = h->to;
    entry.port = h->to_port;
    if (map_update(MAP(CONNS), &back, &entry, 0))
        return 0;
    entry.flags = m->flags & MASQUERADE ? MARKED : 0;
    entry.addr = to.addr;
    entry.port = to.port;
    if (!map_update(MAP(CONNS), key, &entry, 0))
        return 1;
    map_delete(MAP(CONNS), &back);
    return 0;
}

INLINE int transport_layer(struct __sk_buff *skb, struct header *h) {
    struct { u16 from, to; u32 seq, ack; u8 offset, flags; u16 window; } tcp;
    if (load(skb, h->l4, &tcp, sizeof(tcp)))
        return 0;
    h->from_port = tcp.from;
    h->to_port = tcp.to;
    h->flags = tcp.flags;
    return 1;
}

INLINE int tcp_in(struct __sk_buff *skb, int v6, struct scratch *s) {
    struct header *h = &s->outer;
    if (h->later)
        return later_fragment(skb, h, 0);
    if (!transport_layer(skb, h))
        return NEXT;
    struct tuple key = {.client = h->from, .other = h->to, .client_port = h->from_port, .other_port = h->to_port,
                        .protocol = TCP};
    struct conn *c = map_lookup(MAP(CONNS), &key);
    int opens = (h->flags & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == TCP_SYN;
    if (!c && !opens)
        return not_ours(h);
    u64 now = ktime();
    if (opens && (!c || over(&key, c, now))) {
        if (!begin(&key, s, now))
            return not_ours(h);
        c = map_lookup(MAP(CONNS), &key);
    }
    if (!c)
        return not_ours(h);
    if (c->flags & LEFT) {
        if (opens)
            c->used = now;
        return not_ours(h);
    }
    note(c, h->flags, now);
    if (opens && c->flags & MARKED) {
        u32 zero = 0;
        struct config *config = map_lookup(MAP(CONFIG), &zero);
        if (config)
            skb->mark |= config->mark;
    }
    return translate(skb, v6, h, 0, c);
}

INLINE int tcp_out(struct __sk_buff *skb, int v6, struct scratch *s) {
    struct header *h = &s->outer;
    if (h->later)
        return later_fragment(skb, h, 1);
    if (!transport_layer(skb, h))
        return NEXT;
    struct tuple key = {.client = h->to, .other = h->from, .client_port = h->to_port, .other_port = h->from_port,
                        .protocol = TCP, .answers = 1};
    struct conn *c = map_lookup(MAP(CONNS), &key);
    if (!c)
        return not_ours(h);
    note(c, h->flags, ktime());
    if (!(c->flags & ANSWERED))
        c->flags |= ANSWERED;
    return translate(skb, v6, h, 1, c);
}

/*
 * An error about a packet of a connection, which it quotes. Received: about an answer, quoted with the frontend's
 * address. Sent: about a packet that was translated, quoted with the endpoint's.
 */
INLINE int error(struct __sk_buff *skb, int v6, struct scratch *s, int source) {
    struct header *h = &s->outer, *quoted = &s->inner;
    u8 kind;
    if (h->later || h->more || load(skb, h->l4, &kind, 1))
        return NEXT;
    if (v6 ? !kind || kind > 4 : kind != 3 && kind != 11 && kind != 12)
        return NEXT;
    u32 at = h->l4 + 8, sum_at = h->l4 + 2;
    u16 ports[2];
    if (!network_layer(skb, v6, at, quoted) || quoted->protocol != TCP || quoted->later ||
        load(skb, quoted->l4, ports, sizeof(ports)))
        return NEXT;
    /* In the quoted packet the client is on the side the error goes away from. */
    struct tuple key = {.client = source ? quoted->from : quoted->to, .other = source ? quoted->to : quoted->from,
                        .client_port = source ? ports[0] : ports[1], .other_port = source ? ports[1] : ports[0],
                        .protocol = TCP, .answers = source};
    struct conn *c = map_lookup(MAP(CONNS), &key);
    if (!c || c->flags & LEFT)
        return NEXT;
    if (!same_address(&h->to, source ? &key.client : &key.other))
        return NEXT;
    struct address addr = c->addr;
    u16 port = c->port;
    /* IPv4: the quoted header's own checksum outweighs its address, so the error's does not change by it. */
    if (put_address(skb, v6, at, !source, &key.other, &addr, v6 ? sum_at : 0, 0) ||
        put_port(skb, quoted->l4 + (source ? 2 : 0), key.other_port, port, sum_at))
        return DROP;
    struct address *mine = source ? &h->from : &h->to;
    if (same_address(mine, &key.other) &&
        put_address(skb, v6, LINK_HEADER, source, mine, &addr, v6 ? sum_at : 0, PSEUDO))
        return DROP;
    return NEXT;
}

INLINE int pass(struct __sk_buff *skb, int source) {
    u32 zero = 0;
    int v6 = skb->protocol == IPV6;
    if (!v6 && skb->protocol != IPV4)
        return NEXT;
    struct scratch *s = map_lookup(MAP(SCRATCH), &zero);
    if (!s)
        return NEXT;
    if (v6) {
        if (!network_layer(skb, 1, LINK_HEADER, &s->outer))
            return NEXT;
        if (s->outer.protocol == TCP)
            return source ? tcp_out(skb, 1, s) : tcp_in(skb, 1, s);
        return s->outer.protocol == ICMP6 ? error(skb, 1, s, source) : NEXT;
    }
    if (!network_layer(skb, 0, LINK_HEADER, &s->outer))
        return NEXT;
    if (s->outer.protocol == TCP)
        return source ? tcp_out(skb, 0, s) : tcp_in(skb, 0, s);
    return s->outer.protocol == ICMP4 ? error(skb, 0, s, source) : NEXT;
}

int uplink_in(struct __sk_buff *skb) { return pass(skb, 0); }

int uplink_out(struct __sk_buff *skb) { return pass(skb, 1); }
