//! The core's tables in the kernel: maps and helpers.

use core::{ffi::c_void, ops::Deref};

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock_tuple, xdp_md},
    helpers::{
        bpf_get_prandom_u32,
        generated::{
            bpf_jiffies64, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_load_bytes, bpf_skc_lookup_tcp,
        },
    },
};
use proxy_common::{
    Family, V4, V6,
    decide::{
        AffinityHandle, Attempt, DropReason, FlowHandle, Found, Fragmentable, Inserted, NodeAddress, Route,
        RouteKind, Tables, Verdict,
    },
    layout::{
        affinity::{Affinity, AffinityKey},
        answers::Mark,
        backend::{Alive, Backend},
        config::Settings,
        counter::Counter,
        device::Device,
        filter,
        flow::{Edge, Flow, FlowKey, FlowState, Mac, Pair, Tuple},
        fragment::{FragmentKey, FragmentPorts},
        frontend::{Frontend, FrontendKey, Target},
        id::Id,
        outbound::Outbound,
        set::{Set, SetRole},
    },
    packet::{Bytes, ETHERNET, PROTOCOL_TCP, PROTOCOL_UDP, Packet, SCTP_HEADER, TCP, UDP, read, timestamp},
};

use crate::{
    answers,
    family::KernelFamily,
    maps::{ALIVE, COUNTERS, DEVICES, SETS, VIP_FILTER},
    report,
    rewrite::LONGEST_MASK,
    route::{
        self,
        known::{self, Question},
        next_hop,
    },
    scratch::scratch,
    settings::{second, settings},
    tc::{GSO_BY_FRAGS, Skb},
};

/// The bytes of a frame at XDP, as far as its headers may reach.
struct Frame(*mut xdp_md);

impl Bytes for Frame {
    #[inline(always)]
    fn load<T: Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: the context is readable, and so are the bounds it gives.
        unsafe {
            let (data, end) =
                ((*self.0).data as usize as *const u8, (*self.0).data_end as usize as *const u8);
            // As in `rewrite`: what is not on the stack may be anything to the verifier.
            let at = data.wrapping_add(core::hint::black_box(offset) & LONGEST_MASK);
            (at.wrapping_add(size_of::<T>()) <= end).then(|| read(at))
        }
    }
}

/// The maps, and the context that some helpers want.
pub(crate) struct Kernel {
    pub(crate) ctx: *mut c_void,
    layer: Layer,
}

/// Where the program runs.
#[derive(Clone, Copy)]
enum Layer {
    /// XDP. Packets that are answered instead of being sent on are left to tc, which will ask the same.
    Xdp,
    /// tc, on a device whose frames have so many bytes before the network header.
    Tc(usize),
    /// A socket hook: no packets.
    Socket,
}

impl Kernel {
    /// For socket hooks.
    #[inline(always)]
    pub(crate) fn new(ctx: *mut c_void) -> Self {
        Self { ctx, layer: Layer::Socket }
    }

    /// For tc.
    #[inline(always)]
    pub(crate) fn of_skb(skb: *mut __sk_buff, link: usize) -> Self {
        Self { ctx: skb.cast(), layer: Layer::Tc(link) }
    }

    /// For XDP, in front of tc.
    #[inline(always)]
    pub(crate) fn before_tc(ctx: *mut c_void) -> Self {
        Self { ctx, layer: Layer::Xdp }
    }

    /// A packet's size at tc: of one to be cut by a device (GSO), its longest piece.
    #[inline(always)]
    fn size_of_skb<F: Family>(&self, link: usize, packet: &Packet<F>) -> u32 {
        const WORDS: usize = 12;
        /// Offset of the first chunk's length in an SCTP packet.
        const CHUNK_LENGTH: usize = 14;
        let skb = self.ctx.cast::<__sk_buff>();
        // SAFETY: the context is readable.
        let (length, segment) = unsafe { ((*skb).len, (*skb).gso_size) };
        if segment == 0 {
            return length.wrapping_sub(link as u32);
        }
        if segment == GSO_BY_FRAGS {
            // Segments differ. The first one has this chunk at least, and nothing but it where a long message is sent.
            let chunk = Skb(skb).load::<u16>(packet.transport + CHUNK_LENGTH).unwrap_or_default();
            let first = (packet.transport - link + SCTP_HEADER) as u32 + u16::from_be(chunk) as u32;
            let whole = length.wrapping_sub(link as u32);
            return if first < whole { first } else { whole };
        }
        let mut words = 0u8;
        let header = if packet.protocol == PROTOCOL_TCP {
            let at = (packet.transport + WORDS) as u32;
            // SAFETY: the context, and a byte on the stack.
            if unsafe { bpf_skb_load_bytes(skb.cast(), at, (&raw mut words).cast(), 1) } == 0 {
                (words >> 4) as usize * 4
            } else {
                TCP
            }
        } else {
            UDP
        };
        (packet.transport - link + header) as u32 + segment
    }

    /// A packet's size at XDP, as its network header has it: frames may be in several buffers, and padded.
    #[inline(always)]
    fn size_of_frame<F: KernelFamily>(&self) -> u32 {
        let ctx = self.ctx.cast::<xdp_md>();
        // SAFETY: the context is readable, and so are the bounds it gives.
        unsafe {
            let (data, end) = ((*ctx).data as usize as *const u8, (*ctx).data_end as usize as *const u8);
            let header = data.wrapping_add(ETHERNET);
            if header.wrapping_add(F::HEADER) > end { 0 } else { F::total_length(header) }
        }
    }
}

/// Counts on this CPU.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    count_index(counter as u32);
}

/// The same, by the counter's index.
#[inline(always)]
pub(crate) fn count_index(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own value; a nested program may lose a count, no more.
        unsafe { *value += 1 };
    }
}

/// An entry of a flow map.
pub(crate) struct FlowEntry<F: Family>(*mut Flow<F>);

// Entries are shared with other CPUs and may be recycled meanwhile: each access is to one field, and what a
// recycled entry would say is no worse than what a late packet would.
impl<F: Family> Deref for FlowEntry<F> {
    type Target = Flow<F>;

    #[inline(always)]
    fn deref(&self) -> &Flow<F> {
        // SAFETY: the kernel gave the pointer, and map memory outlives the program.
        unsafe { &*self.0 }
    }
}

impl<F: Family> FlowHandle<F> for FlowEntry<F> {
    #[inline(always)]
    fn touch(&self, now: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).last_seen = now };
    }

    #[inline(always)]
    fn set_state(&self, state: FlowState) {
        // SAFETY: as above.
        unsafe { (*self.0).state = state as u8 };
    }

    #[inline(always)]
    fn set_mac(&self, mac: Mac) {
        // SAFETY: as above.
        unsafe {
            (*self.0).mac.0[0] = mac.0[0];
            (*self.0).mac.0[1] = mac.0[1];
            (*self.0).mac.0[2] = mac.0[2];
        }
    }

    #[inline(always)]
    fn set_isn(&self, isn: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).isn = isn };
    }

    #[inline(always)]
    fn set_acknowledged(&self, acknowledged: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).acknowledged = acknowledged };
    }

    #[inline(always)]
    fn set_timestamp(&self, timestamp: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).timestamp = timestamp };
    }
}

/// An entry of an affinity map.
pub(crate) struct AffinityEntry<F: Family>(*mut Affinity<F>);

impl<F: Family> Deref for AffinityEntry<F> {
    type Target = Affinity<F>;

    #[inline(always)]
    fn deref(&self) -> &Affinity<F> {
        // SAFETY: the kernel gave the pointer, and map memory outlives the program.
        unsafe { &*self.0 }
    }
}

impl<F: Family> AffinityHandle<F> for AffinityEntry<F> {
    #[inline(always)]
    fn touch(&self, now: u32) {
        // SAFETY: as above; one word.
        unsafe { (*self.0).last_used = now };
    }
}

// A tuple is what socket look-ups take.
const _: () = {
    use aya_ebpf::bindings::{
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Ipv6,
    };
    use core::mem::offset_of;
    assert!(size_of::<Ipv4>() == size_of::<Tuple<V4>>() && size_of::<Ipv6>() == size_of::<Tuple<V6>>());
    assert!(
        offset_of!(Ipv4, daddr) == offset_of!(Tuple<V4>, dst)
            && offset_of!(Ipv6, daddr) == offset_of!(Tuple<V6>, dst)
    );
    assert!(
        offset_of!(Ipv4, sport) == offset_of!(Tuple<V4>, sport)
            && offset_of!(Ipv6, sport) == offset_of!(Tuple<V6>, sport)
    );
};

impl<F: KernelFamily> Tables<F> for Kernel {
    type Flow = FlowEntry<F>;
    type Affinity = AffinityEntry<F>;
    type Pair = &'static mut Pair<F>;
    type KnownRoute = &'static Route<F>;

    #[inline(always)]
    fn pair(&self) -> Option<&'static mut Pair<F>> {
        // SAFETY: this CPU's own, and the core takes it once at a time.
        F::pair().map(|pair| unsafe { &mut *pair })
    }

    #[inline(always)]
    fn settings(&self) -> Settings {
        settings(F::snat_sources())
    }

    #[inline(always)]
    fn may_be_frontend(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        let holds =
            |mark: filter::Mark| VIP_FILTER.get(mark.element).is_some_and(|element| mark.is_in(*element));
        holds(filter::of_address::<F>(addr)) || holds(filter::of_frontend::<F>(addr, port, protocol))
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<F>) -> Option<Target> {
        let value = F::frontend(key)?;
        // SAFETY: the kernel gave the pointer.
        if let Some(target) = unsafe { Frontend::read(value, key) } {
            return Some(target);
        }
        // The element was recycled under us; the key's own is in the map by now, or it is gone.
        let value = F::frontend(key)?;
        // SAFETY: as above.
        let target = unsafe { Frontend::read(value, key) };
        if target.is_none() {
            count(Counter::FrontendTorn);
        }
        target
    }

    #[inline(always)]
    fn set(&self, service: Id, role: SetRole) -> Set {
        match SETS.get_ptr(Set::index(service, role)) {
            // SAFETY: the kernel gave the pointer. One volatile load: the agent publishes with one store.
            Some(set) => unsafe { set.read_volatile() },
            None => Set::EMPTY,
        }
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<&Backend<F>> {
        // SAFETY: the kernel gave the pointer; slots do not change while a set names them.
        F::backend(slot).map(|backend| unsafe { &*backend })
    }

    #[inline(always)]
    fn is_alive(&self, backend: Id) -> bool {
        match ALIVE.get_ptr(Alive::position(backend).0) {
            // SAFETY: the kernel gave the pointer.
            Some(element) => unsafe { element.read_volatile() }.holds(backend),
            None => false,
        }
    }

    #[inline(always)]
    fn is_member(&self, backend: Id, role: SetRole) -> bool {
        match ALIVE.get_ptr(Alive::position(backend).0) {
            // SAFETY: the kernel gave the pointer.
            Some(element) => unsafe { element.read_volatile() }.holds_in(backend, role),
            None => false,
        }
    }

    #[inline(always)]
    fn affinity_timeout(&self, service: Id) -> u32 {
        match SETS.get_ptr(Set::affinity_index(service)) {
            // SAFETY: the kernel gave the pointer.
            Some(word) => unsafe { word.read_volatile() }.0 as u32,
            None => 0,
        }
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<F>) -> Option<AffinityEntry<F>> {
        F::affinity(key).map(AffinityEntry)
    }

    #[inline(always)]
    fn remember_affinity(&self, key: &AffinityKey<F>, affinity: &Affinity<F>) {
        F::put_affinity(key, affinity);
    }

    #[inline(always)]
    fn allows_source(&self, service: Id, addr: &F::Addr) -> bool {
        F::has_source(service, addr)
    }

    #[inline(always)]
    fn is_service_address(&self, addr: &F::Addr) -> bool {
        F::service_cidrs().is_some_and(|cidrs| cidrs.contains(addr))
    }

    #[inline(always)]
    fn node_address(&self, addr: &F::Addr) -> NodeAddress {
        NodeAddress(F::node_address(addr))
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<&Device> {
        // SAFETY: the agent replaces whole elements; a torn one would need two changes at once.
        unsafe { DEVICES.get(ifindex) }
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey<F>) -> Option<FlowEntry<F>> {
        F::flow(key).map(FlowEntry)
    }

    #[inline(always)]
    fn may_be_answer(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool {
        answers::holds(Mark::of::<F>(addr, port, protocol))
    }

    #[inline(always)]
    fn announce_answers(&self, addr: &F::Addr, port: u16, protocol: u8) {
        answers::announce(Mark::of::<F>(addr, port, protocol));
    }

    #[inline(always)]
    fn replace_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        F::put_flow(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey<F>) {
        F::remove_flow(key);
    }

    #[inline(always)]
    fn pending(&self, key: &FlowKey<F>) -> Option<FlowEntry<F>> {
        F::pending(key).map(FlowEntry)
    }

    #[inline(always)]
    fn insert_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Inserted {
        const EEXIST: i32 = -17;
        match F::put_pending(key, flow, BPF_NOEXIST as u64) {
            Ok(()) => Inserted::Yes,
            Err(EEXIST) => Inserted::Exists,
            Err(_) => Inserted::NoRoom,
        }
    }

    #[inline(always)]
    fn replace_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool {
        F::put_pending(key, flow, 0).is_ok()
    }

    #[inline(always)]
    fn remove_pending(&self, key: &FlowKey<F>) {
        F::remove_pending(key);
    }

    #[inline(always)]
    fn find_flow(&self, packet: &Packet<F>, edge: Edge) -> Option<FlowEntry<F>> {
        const CONFIRMED: u32 = Found::Confirmed as u32;
        const PENDING: u32 = Found::Pending as u32;
        // The packet is in the CPU's scratch already.
        let key = &mut scratch::<F>()?.key;
        *key = FlowKey::new(packet.tuple, packet.protocol, edge);
        let found = match self.layer {
            Layer::Xdp => F::find_of_frame(self.ctx.cast()),
            _ => F::find_of_skb(self.ctx.cast()),
        };
        match found {
            CONFIRMED => F::flow(key).map(FlowEntry),
            // Another CPU may have confirmed it meanwhile.
            PENDING => F::pending(key).or_else(|| F::flow(key)).map(FlowEntry),
            _ => None,
        }
    }

    #[inline(always)]
    fn defers(&self) -> bool {
        matches!(self.layer, Layer::Tc(_))
    }

    #[inline(always)]
    fn attempt(&self, _: &mut Pair<F>, seize: bool) -> Attempt {
        const OPENED: u32 = Attempt::Opened as u32;
        const TAKEN: u32 = Attempt::Taken as u32;
        let attempt = match self.layer {
            Layer::Xdp => F::attempt_of_frame(self.ctx.cast(), seize as u32),
            _ => F::attempt_of_skb(self.ctx.cast(), seize as u32),
        };
        match attempt {
            OPENED => Attempt::Opened,
            TAKEN => Attempt::Taken,
            _ => Attempt::NoRoom,
        }
    }

    #[inline(always)]
    fn confirm_flow(&self, _: &mut Pair<F>) -> bool {
        F::confirm() != 0
    }

    #[inline(always)]
    fn snat_source(&self, index: u32) -> Option<F::Addr> {
        // SAFETY: the kernel gave the pointer; written before programs are attached.
        F::snat_source(index).map(|addr| unsafe { *addr })
    }

    #[inline(always)]
    fn may_be_snat_source(&self, addr: &F::Addr) -> bool {
        let mark = filter::of_snat_source::<F>(addr);
        VIP_FILTER.get(mark.element).is_some_and(|element| mark.is_in(*element))
    }

    #[inline(always)]
    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound> {
        // SAFETY: the kernel gave the pointer. Two words, of which the second hardly ever changes.
        F::outbound(key).map(|outbound| unsafe { *outbound })
    }

    #[inline(always)]
    fn remember_outbound(&self, key: &FlowKey<F>, outbound: &Outbound) {
        F::put_outbound(key, outbound);
    }

    #[inline(always)]
    fn came_in(&self) -> u32 {
        match self.layer {
            // SAFETY: the context is readable.
            Layer::Tc(_) => unsafe { (*self.ctx.cast::<__sk_buff>()).ingress_ifindex },
            Layer::Xdp | Layer::Socket => 0,
        }
    }

    #[inline(always)]
    fn leaves(&self) -> u32 {
        match self.layer {
            // SAFETY: the context is readable.
            Layer::Tc(_) => unsafe { (*self.ctx.cast::<__sk_buff>()).ifindex },
            Layer::Xdp | Layer::Socket => 0,
        }
    }

    #[inline(always)]
    fn acknowledgment(&self, _: &Packet<F>) -> u32 {
        const ACKNOWLEDGMENT: usize = 8;
        let (data, end, link) = match self.layer {
            // SAFETY: the context is readable.
            Layer::Tc(link) => unsafe {
                let skb = self.ctx.cast::<__sk_buff>();
                ((*skb).data as usize as *const u8, (*skb).data_end as usize as *const u8, link)
            },
            // SAFETY: as above.
            Layer::Xdp => unsafe {
                let frame = self.ctx.cast::<xdp_md>();
                ((*frame).data as usize as *const u8, (*frame).data_end as usize as *const u8, ETHERNET)
            },
            Layer::Socket => return 0,
        };
        let at = data.wrapping_add(link + F::HEADER + ACKNOWLEDGMENT);
        if at.wrapping_add(size_of::<u32>()) > end {
            return 0;
        }
        // SAFETY: within the bounds just checked.
        u32::from_be(unsafe { read(at) })
    }

    #[inline(always)]
    fn timestamp(&self, packet: &Packet<F>) -> u32 {
        match self.layer {
            Layer::Tc(_) => timestamp(&Skb(self.ctx.cast()), packet.transport, packet.is_syn()),
            Layer::Xdp => timestamp(&Frame(self.ctx.cast()), packet.transport, packet.is_syn()),
            Layer::Socket => 0,
        }
    }

    #[inline(always)]
    fn open_flow(&self, _: &mut Pair<F>) -> Option<DropReason> {
        DropReason::of_flow(match self.layer {
            Layer::Xdp => F::open_flow_of_frame(self.ctx.cast()),
            _ => F::open_flow_of_skb(self.ctx.cast()),
        })
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<F>) -> Option<FragmentPorts> {
        // SAFETY: the kernel gave the pointer. Two words; whoever reuses the identification meanwhile spoils both packets.
        F::fragment(key).map(|ports| unsafe { *ports })
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey<F>, ports: &FragmentPorts) {
        F::put_fragment(key, ports);
    }

    #[inline(always)]
    fn size(&self, packet: &Packet<F>) -> u32 {
        match self.layer {
            Layer::Xdp => self.size_of_frame::<F>(),
            Layer::Tc(link) => self.size_of_skb(link, packet),
            Layer::Socket => 0,
        }
    }

    #[inline(always)]
    fn fragmentable(&self, _: &Packet<F>) -> Fragmentable {
        const FLAGS: usize = 6;
        const DO_NOT_FRAGMENT: u16 = 0x4000u16.to_be();
        const MORE_AND_OFFSET: u16 = 0x3fffu16.to_be();
        match self.layer {
            Layer::Tc(link) if size_of::<F::Addr>() == size_of::<u32>() => {
                match Skb(self.ctx.cast()).load::<u16>(link + FLAGS) {
                    Some(flags) if flags & DO_NOT_FRAGMENT != 0 => Fragmentable::No,
                    Some(flags) if flags & MORE_AND_OFFSET == 0 => Fragmentable::Whole,
                    Some(_) => Fragmentable::Fragment,
                    None => Fragmentable::No,
                }
            }
            // XDP leaves it to tc.
            _ => Fragmentable::No,
        }
    }

    #[inline(always)]
    fn route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, size: u32, route: &mut Route<F>) {
        if size == 0 {
            route::look_up(self.ctx, ifindex, src, dst, 0, route);
            let now = Tables::<F>::now(self);
            if !matches!(self.layer, Layer::Xdp) {
                next_hop::mark(route, now);
            } else if next_hop::must_hand_over(route, now, second()) {
                route.kind = RouteKind::Unresolved;
            }
        } else if let Some(known) = self.known_route(ifindex, src, dst, size) {
            *route = *known;
        } else {
            route.kind = RouteKind::None;
        }
    }

    #[inline(always)]
    fn known_route(
        &self,
        ifindex: u32,
        src: &F::Addr,
        dst: &F::Addr,
        size: u32,
    ) -> Option<&'static Route<F>> {
        let question = Question { ifindex, src, dst, size, now: Tables::<F>::now(self) };
        known::look_up(&question, |place| match self.layer {
            Layer::Xdp => F::route_of_frame(self.ctx.cast(), place),
            _ => F::route_of_skb(self.ctx.cast(), place),
        })
    }

    #[inline(always)]
    fn preferred_source(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, preferred: &mut F::Addr) -> bool {
        route::preferred_source::<F>(self.ctx, ifindex, src, dst, preferred)
    }

    #[inline(always)]
    fn has_socket(&self, tuple: &Tuple<F>, protocol: u8) -> bool {
        if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
            // The kernel has no look-up for SCTP. Rather may a late packet be answered by the stack than a server of the node
            // lose all of its: SGsAP, for one, has its port in the range.
            return true;
        }
        // Ours has the layout of the kernel's. It is only read.
        let sock_tuple = (&raw const *tuple).cast_mut().cast::<bpf_sock_tuple>();
        let size = size_of::<Tuple<F>>() as u32;
        let current = BPF_F_CURRENT_NETNS as i64 as u64;
        // SAFETY: context and tuple are what the helpers want; what they return is released.
        unsafe {
            let socket = if protocol == PROTOCOL_TCP {
                bpf_skc_lookup_tcp(self.ctx, sock_tuple, size, current, 0)
            } else {
                bpf_sk_lookup_udp(self.ctx, sock_tuple, size, current, 0)
            };
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        }
        true
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_jiffies64() as u32 }
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        count(counter);
    }

    #[inline(always)]
    fn drop(&self, reason: DropReason) -> Verdict {
        match self.layer {
            Layer::Xdp | Layer::Tc(_) => report::refused::<F>(reason.counter()),
            // No packet is there to be looked at.
            Layer::Socket => count(reason.counter()),
        }
        Verdict::Drop
    }

    #[inline(always)]
    fn answer(&self, counter: Counter, verdict: Verdict) -> Verdict {
        if !matches!(self.layer, Layer::Xdp) {
            report::refused::<F>(counter);
        }
        verdict
    }

    #[inline(always)]
    fn snat_address(device: &Device, addr: &mut F::Addr) -> bool {
        <F as KernelFamily>::snat_address(device, addr)
    }
}
