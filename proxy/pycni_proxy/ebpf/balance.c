/*
 * What all programs share: the frontend a destination meets, and the target chosen for it. Layouts are those of
 * layout.py; maps are named by their place in the object's list, the first ones the same in all objects. Addresses are
 * 16 bytes in network order (IPv4 as ::ffff:a.b.c.d), ports 16 bits in network order.
 */
#define INLINE static __attribute__((always_inline)) inline
#define MAP(number) ((void *)bpf_pseudo_fd(1, number))

enum { FRONTENDS, POOLS, MAGLEV, NODES, SERVED, TURNS, OPEN, AFFINITY, OWN };
enum { RANDOM, RR, LC, SH, DH, MH };
enum { REFUSE = 1, HASH_PORTS = 2, MASQUERADE = 16 };
#define MAGLEV_SHIFT 2
#define MAGLEV_MASK 3

#define CHUNK 8
#define MAGLEV_BLOCK 4096
#define LC_LOOKS 64
#define TCP 6
#define UDP 17

/* Helpers by number (include/uapi/linux/bpf.h): bcc's own declarations are made for its own maps. */
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static u64 (*ktime)(void) = (void *)5;
static u32 (*prandom)(void) = (void *)7;

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
/*
 * Variables of the loops below. They are in a map (a socket's storage, a processor's own row) and not on the stack, where
 * the verifier would follow every value they can have.
 */
struct work { u32 low, high, found, index; u64 best; };

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
        u32 hash = mix(source), size = m->flags >> MAGLEV_SHIFT & MAGLEV_MASK;
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

