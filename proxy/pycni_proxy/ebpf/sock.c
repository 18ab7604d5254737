/*
 * Services in the socket layer: the address a program connects or sends to is replaced by an endpoint's before the
 * first packet exists, so a service costs nothing per packet. What is not found in a map is left alone: the nftables
 * rows serve it. Follows balance.c.
 */
enum { FLOWS = OWN, REVERSE, SOCKETS };
#define FLOW_NS (120ull * 1000000000ull) /* nf_conntrack_udp_timeout_stream */
#define REFUSED (-111)                   /* -ECONNREFUSED */
#define MPTCP 262

static u64 (*socket_cookie)(void *ctx) = (void *)46;
static void *(*storage_get)(void *map, void *sk, void *value, u64 flags) = (void *)107;
static u64 (*netns_cookie)(void *ctx) = (void *)122;
static int (*set_retval)(int value) = (void *)187;

struct flow_key { u64 socket; struct frontend frontend; u32 pad; };
struct flow { u32 pool[3]; struct target target; u64 used; };
struct reverse_key { u64 socket; struct target target; u32 pad; };
/* Of a socket, which is locked while a program decides about it; frontend.protocol 0: not connected through a service. */
struct state { struct target target; struct frontend frontend; u64 service; u32 counted; u32 pad; struct work work; };

INLINE int served(u64 client) {
    u64 everybody = 0;
    return map_lookup(MAP(SERVED), &client) || map_lookup(MAP(SERVED), &everybody);
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
