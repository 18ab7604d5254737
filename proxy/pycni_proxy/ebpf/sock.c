/*
 * Services in the socket layer: the address a program connects or sends to is replaced by an endpoint's before the
 * first packet exists, so a service costs nothing per packet. Layouts are those of layout.py; maps are named by their
 * place in layout.MAPS. Addresses are 16 bytes in network order (IPv4 as ::ffff:a.b.c.d), ports 16 bits in network
 * order. What is not found in a map is left alone: the nftables rows serve it.
 */
#define INLINE static __attribute__((always_inline)) inline
#define MAP(number) ((void *)bpf_pseudo_fd(1, number))

enum { FRONTENDS, POOLS, MAGLEV, NODES, SERVED, TURNS, OPEN, AFFINITY, FLOWS, REVERSE, SOCKETS };
enum { RANDOM, RR, LC, SH, DH, MH };
enum { REFUSE = 1, HASH_PORTS = 2 };
#define MAGLEV_SHIFT 2

#define CHUNK 8
#define MAGLEV_BLOCK 4096
#define LC_LOOKS 64
#define FLOW_NS (120ull * 1000000000ull) /* nf_conntrack_udp_timeout_stream */
#define REFUSED (-111)                   /* -ECONNREFUSED */
#define TCP 6
#define UDP 17
#define MPTCP 262

/* Helpers by number (include/uapi/linux/bpf.h): bcc's own declarations are made for its own maps. */
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*ktime)(void) = (void *)5;
static u32 (*prandom)(void) = (void *)7;
static u64 (*socket_cookie)(void *ctx) = (void *)46;
static void *(*storage_get)(void *map, void *sk, void *value, u64 flags) = (void *)107;
static u64 (*netns_cookie)(void *ctx) = (void *)122;
static int (*set_retval)(int value) = (void *)187;

struct address { u32 w[4]; };
struct frontend { struct address addr; u16 port; u8 protocol; u8 node_port; };
struct meta {
    u32 pool[3];
    u32 count; /* targets that get new connections */
    u64 service;
    u32 affinity_s;
    u8 scheduler, flags;
    u16 draining; /* further targets, behind the others */
};
struct target { struct address addr; u16 port; u16 local; }; /* local: 0 in keys */
struct chunk_key { u32 pool[3]; u32 number; };
struct chunk { struct target t[CHUNK]; };
struct open_key { u64 service; struct target target; u32 pad; };
struct affinity_key { u64 client; u64 service; };
struct affinity { struct target target; u32 pad; u64 used; };
struct flow_key { u64 socket; struct frontend frontend; u32 pad; };
struct flow { u32 pool[3]; struct target target; u64 used; };
struct reverse_key { u64 socket; struct target target; u32 pad; };
/*
 * Variables of the loops below. They are in a socket's storage and not on the stack, where the verifier would follow
 * every value they can have; a socket is locked while a program decides about it.
 */
struct work { u32 low, high, found, index; u64 best; };
/* Of a socket; frontend.protocol 0: it is not connected through a service. */
struct state { struct target target; struct frontend frontend; u64 service; u32 counted; u32 pad; struct work work; };

INLINE int same_address(struct address *a, struct address *b) {
    return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

INLINE int same(struct target *a, struct target *b) { return a->port == b->port && same_address(&a->addr, &b->addr); }

INLINE int below(struct target *a, struct target *b) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 x = __builtin_bswap32(a->addr.w[i]), y = __builtin_bswap32(b->addr.w[i]);
        if (x != y)
            return x < y;
    }
    return __builtin_bswap16(a->port) < __builtin_bswap16(b->port);
}

INLINE u32 mix(u64 value) {
    value ^= value >> 33;
    value *= 0xff51afd7ed558ccdull;
    value ^= value >> 33;
    value *= 0xc4ceb9fe1a85ec53ull;
    return (u32)(value ^ (value >> 33));
}

INLINE u64 fold(struct address *a) {
    return ((u64)a->w[0] << 32 | a->w[1]) * 0x9e3779b97f4a7c15ull ^ ((u64)a->w[2] << 32 | a->w[3]);
}

INLINE int served(u64 client) {
    u64 everybody = 0;
    return map_lookup(MAP(SERVED), &client) || map_lookup(MAP(SERVED), &everybody);
}

/* The frontend a destination meets; for a node port the key becomes that of its row. */
INLINE struct meta *find_frontend(struct frontend *key) {
    struct meta *found = map_lookup(MAP(FRONTENDS), key);
    if (found || !map_lookup(MAP(NODES), &key->addr))
        return found;
    /* The family stays in the key: node ports may be of one family only. */
    int mapped = !key->addr.w[0] && !key->addr.w[1] && key->addr.w[2] == 0xffff0000;
    key->addr.w[0] = key->addr.w[1] = key->addr.w[3] = 0;
    key->addr.w[2] = mapped ? 0xffff0000 : 0;
    key->node_port = 1;
    return map_lookup(MAP(FRONTENDS), key);
}

INLINE struct target *slot(struct meta *m, u32 index) {
    struct chunk_key key = {.pool = {m->pool[0], m->pool[1], m->pool[2]}, .number = index / CHUNK};
    struct chunk *found = map_lookup(MAP(POOLS), &key);
    return found ? &found->t[index % CHUNK] : 0;
}

/* Binary search: targets are sorted. */
INLINE int contains(struct meta *m, u32 from, u32 count, struct target *wanted, volatile struct work *w) {
    w->low = from;
    w->high = from + count;
    w->found = 0;
    for (int i = 0; i < 17; i++) {
        u32 low = w->low, high = w->high;
        if (low >= high)
            break;
        u32 middle = (low + high) / 2;
        struct target *t = slot(m, middle);
        if (!t)
            break;
        if (same(t, wanted)) {
            w->found = 1;
            break;
        }
        if (below(t, wanted))
            w->low = middle + 1;
        else
            w->high = middle;
    }
    return w->found;
}

/* One more connection through a frontend; returns how many there were before. */
INLINE u64 next_turn(struct frontend *key) {
    u64 *turns = map_lookup(MAP(TURNS), key);
    if (!turns) {
        u64 none = 0;
        map_update(MAP(TURNS), key, &none, 1);
        turns = map_lookup(MAP(TURNS), key);
        if (!turns)
            return 0;
    }
    return __sync_fetch_and_add(turns, 1);
}

/* The target with the fewest open connections, looked for from a random one on. */
INLINE u32 least(struct meta *m, volatile struct work *w) {
    w->index = prandom() % m->count;
    w->best = ~0ull;
    for (int i = 0; i < LC_LOOKS; i++) {
        u32 index = w->index;
        if (i >= m->count)
            break;
        struct target *t = slot(m, index);
        if (!t)
            break;
        struct open_key key = {.service = m->service, .target = *t};
        key.target.local = 0;
        u64 *open = map_lookup(MAP(OPEN), &key);
        u64 candidate = index;
        if (open)
            candidate |= *open << 32;
        if (candidate < w->best)
            w->best = candidate;
        w->index = index + 1 < m->count ? index + 1 : 0;
    }
    return (u32)w->best % m->count;
}

INLINE int choose(struct meta *m, struct frontend *key, u64 client, u64 socket, struct target *out,
                  volatile struct work *w) {
    u32 index;
    u64 turn = next_turn(key);
    u64 source = m->flags & HASH_PORTS ? client * 31 + socket : client;
    switch (m->scheduler) {
    case RR:
        index = turn % m->count;
        break;
    case LC:
        index = least(m, w);
        break;
    case SH:
        index = mix(source) % m->count;
        break;
    case DH:
        index = mix(fold(&key->addr)) % m->count;
        break;
    case MH: {
        u32 hash = mix(source), size = m->flags >> MAGLEV_SHIFT;
        u32 row = hash % (size == 0 ? 4093 : size == 1 ? 16381 : 65521);
        struct chunk_key block = {.pool = {m->pool[0], m->pool[1], m->pool[2]}, .number = row / MAGLEV_BLOCK};
        u16 *table = map_lookup(MAP(MAGLEV), &block);
        index = (table ? table[row % MAGLEV_BLOCK] : hash) % m->count;
        break;
    }
    default:
        index = prandom() % m->count;
    }
    struct target *t = slot(m, index);
    if (!t)
        return 0;
    *out = *t;
    out->local = 0;
    return 1;
}

/* The target for a new connection or flow: the client's own for as long as affinity holds, else one chosen. */
INLINE int pick(struct meta *m, struct frontend *key, u64 client, u64 socket, struct target *out,
                volatile struct work *w) {
    if (!m->affinity_s)
        return choose(m, key, client, socket, out, w);
    struct affinity_key who = {.client = client, .service = m->service};
    struct affinity now = {.used = ktime()};
    struct affinity *last = map_lookup(MAP(AFFINITY), &who);
    if (last && now.used - last->used < m->affinity_s * 1000000000ull) {
        struct target kept = last->target;
        if (contains(m, 0, m->count, &kept, w)) {
            last->used = now.used;
            *out = kept;
            next_turn(key);
            return 1;
        }
    }
    if (!choose(m, key, client, socket, out, w))
        return 0;
    now.target = *out;
    map_update(MAP(AFFINITY), &who, &now, 0);
    return 1;
}

INLINE void count_closed(struct state *st) {
    if (!st->counted)
        return;
    struct open_key key = {.service = st->service, .target = st->target};
    u64 *open = map_lookup(MAP(OPEN), &key);
    if (open && *open)
        __sync_fetch_and_add(open, -1);
    st->counted = 0;
}

INLINE void count_open(struct state *st) {
    struct open_key key = {.service = st->service, .target = st->target};
    u64 one = 1;
    u64 *open = map_lookup(MAP(OPEN), &key);
    if (!open) {
        if (!map_update(MAP(OPEN), &key, &one, 1)) {
            st->counted = 1;
            return;
        }
        open = map_lookup(MAP(OPEN), &key); /* another processor was faster, or the map is full */
    }
    if (open) {
        __sync_fetch_and_add(open, 1);
        st->counted = 1;
    }
}

INLINE void remember(u64 socket, struct target *target, struct frontend *key) {
    struct reverse_key who = {.socket = socket, .target = *target};
    struct frontend *known = map_lookup(MAP(REVERSE), &who);
    if (!known || known->port != key->port || !same_address(&known->addr, &key->addr))
        map_update(MAP(REVERSE), &who, key, 0);
}

INLINE u8 protocol_of(struct bpf_sock_addr *ctx) {
    return ctx->protocol == MPTCP ? TCP : ctx->protocol == TCP || ctx->protocol == UDP ? ctx->protocol : 0;
}

/* A socket connects. 0: untouched, 1: dst and port replaced, -1: refuse. */
INLINE int connecting(struct bpf_sock_addr *ctx, struct frontend *key, struct target *out) {
    struct bpf_sock *sk = ctx->sk;
    u64 client = netns_cookie(ctx);
    if (!sk || !key->protocol || !served(client))
        return 0;
    struct state *st = storage_get(MAP(SOCKETS), sk, 0, 0);
    if (st) { /* it was connected before */
        count_closed(st);
        st->frontend.protocol = 0;
    }
    struct frontend row = *key;
    struct meta *m = find_frontend(&row);
    if (!m)
        return 0;
    if (!m->count)
        return m->flags & REFUSE ? -1 : 0;
    if (!st)
        st = storage_get(MAP(SOCKETS), sk, 0, 1);
    if (!st)
        return 0; /* no memory: better not translated than not translated back */
    u64 socket = socket_cookie(ctx);
    if (!pick(m, &row, client, socket, out, &st->work))
        return 0;
    st->target = *out;
    st->service = m->service;
    st->frontend = *key;
    if (m->scheduler == LC)
        count_open(st);
    if (key->protocol == UDP)
        remember(socket, out, key);
    return 1;
}

/* An unconnected socket sends a datagram: the flow (this socket, that service) keeps its target while it is there. */
INLINE int sending(struct bpf_sock_addr *ctx, struct frontend *key, struct target *out) {
    struct bpf_sock *sk = ctx->sk;
    u64 client = netns_cookie(ctx);
    if (!sk || !key->protocol || !served(client))
        return 0;
    struct frontend row = *key;
    struct meta *m = find_frontend(&row);
    if (!m || !m->count)
        return 0;
    u64 now = ktime();
    struct flow_key who = {.socket = socket_cookie(ctx), .frontend = *key};
    struct flow *known = map_lookup(MAP(FLOWS), &who);
    if (known && now - known->used < FLOW_NS && known->pool[0] == m->pool[0] && known->pool[1] == m->pool[1] &&
        known->pool[2] == m->pool[2]) {
        known->used = now;
        *out = known->target;
        remember(who.socket, out, key);
        return 1;
    }
    struct state *st = storage_get(MAP(SOCKETS), sk, 0, 1);
    if (!st)
        return 0;
    struct flow fresh = {.pool = {m->pool[0], m->pool[1], m->pool[2]}, .used = now};
    int stays = 0;
    if (known && now - known->used < FLOW_NS) { /* the pool has changed: is the target still in it, perhaps draining? */
        fresh.target = known->target;
        stays = contains(m, 0, m->count, &fresh.target, &st->work) ||
                contains(m, m->count, m->draining, &fresh.target, &st->work);
    }
    if (!stays && !pick(m, &row, client, who.socket, &fresh.target, &st->work))
        return 0;
    map_update(MAP(FLOWS), &who, &fresh, 0);
    remember(who.socket, &fresh.target, key);
    *out = fresh.target;
    return 1;
}

/* Whom a socket is shown as the sender of a datagram or as its peer: the service it asked, when it asked one. */
INLINE struct frontend *asked(struct bpf_sock_addr *ctx, struct target *from, int datagrams) {
    struct bpf_sock *sk = ctx->sk;
    if (!sk)
        return 0;
    struct state *st = storage_get(MAP(SOCKETS), sk, 0, 0);
    if (st && st->frontend.protocol && same(&st->target, from))
        return &st->frontend;
    if (!datagrams || ctx->protocol != UDP)
        return 0;
    struct reverse_key who = {.socket = socket_cookie(ctx), .target = *from};
    return map_lookup(MAP(REVERSE), &who);
}

#define KEY4(name) \
    struct frontend name = {.addr = {{0, 0, 0xffff0000, ctx->user_ip4}}, .port = (u16)ctx->user_port, \
                            .protocol = protocol_of(ctx)}
#define KEY6(name) \
    struct frontend name = {.addr = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}}, \
                            .port = (u16)ctx->user_port, .protocol = protocol_of(ctx)}
#define FROM4(name) struct target name = {.addr = {{0, 0, 0xffff0000, ctx->user_ip4}}, .port = (u16)ctx->user_port}
#define FROM6(name) \
    struct target name = {.addr = {{ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]}}, \
                          .port = (u16)ctx->user_port}
#define PUT4(value) do { ctx->user_ip4 = (value).addr.w[3]; ctx->user_port = (value).port; } while (0)
#define PUT6(value) do { \
        ctx->user_ip6[0] = (value).addr.w[0]; ctx->user_ip6[1] = (value).addr.w[1]; \
        ctx->user_ip6[2] = (value).addr.w[2]; ctx->user_ip6[3] = (value).addr.w[3]; \
        ctx->user_port = (value).port; } while (0)

#define FAMILY(number) \
int connect##number(struct bpf_sock_addr *ctx) { \
    KEY##number(key); \
    struct target to = {}; \
    int verdict = connecting(ctx, &key, &to); \
    if (verdict < 0 && key.protocol == TCP) { set_retval(REFUSED); return 0; } \
    if (verdict > 0) PUT##number(to); \
    return 1; \
} \
int sendmsg##number(struct bpf_sock_addr *ctx) { \
    KEY##number(key); \
    struct target to = {}; \
    if (sending(ctx, &key, &to)) PUT##number(to); \
    return 1; \
} \
int recvmsg##number(struct bpf_sock_addr *ctx) { \
    FROM##number(from); \
    struct frontend *vip = asked(ctx, &from, 1); \
    if (vip) PUT##number(*vip); \
    return 1; \
} \
int getpeer##number(struct bpf_sock_addr *ctx) { \
    FROM##number(from); \
    struct frontend *vip = asked(ctx, &from, 0); \
    if (vip) PUT##number(*vip); \
    return 1; \
}

FAMILY(4)
FAMILY(6)

int release(struct bpf_sock *sk) {
    struct state *st = storage_get(MAP(SOCKETS), sk, 0, 0);
    if (st)
        count_closed(st);
    return 1;
}
