//! The constants of a loaded program (`.rodata`). The agent sets them before it loads a program, so that the verifier removes what is switched off.
//!
//! [`data_path_constants!`](crate::data_path_constants) is the only list of them. From it come
//!
//! * the programs' statics (`proxy-ebpf/src/settings.rs`),
//! * [`Constants`], which a loader fills in and writes into the object ([`Constants::encode`]),
//! * [`Settings`], which the decision core reads,
//! * [`CONSTANTS`], from which `cargo xtask codegen` makes the documents' table.

/// The list of constants, handed to the macro `$declare`.
///
/// A line is `NAME => field: type = default;`: the symbol in the object, and the field of [`Constants`]. A `bool`
/// is a byte in the object. The three blocks:
///
/// * `core`: also fields of [`Settings`].
/// * `core_by_family`: the same with a symbol for each family, IPv4 first.
/// * `programs`: read by the programs alone.
#[macro_export]
macro_rules! data_path_constants {
    ($declare:ident) => {
        $declare! {
            core {
                /// First source port for connections to endpoints of other nodes, in host byte order (`--snat-ports`).
                SNAT_FIRST => snat_first: u16 = 1_024;
                /// Last source port.
                SNAT_LAST => snat_last: u16 = 29_999;
                /// Jiffies without a packet (10 seconds) after which a datagram flow gives its source port to another one if nothing else is
                /// found. More than two of `REFRESH`: the last packet is noted that late.
                IDLE => idle: u32 = 10_000;
                /// Translate ClusterIPs for external clients (`--external-cluster-ips`).
                EXTERNAL_CLUSTER_IPS => external_cluster_ips: bool = false;
                /// Reset TCP connections whose endpoint is gone, instead of leaving them to end by themselves (`--reset-removed-tcp`).
                RESET_REMOVED_TCP => reset_removed_tcp: bool = false;
            }
            core_by_family {
                /// Number of source addresses for connections to endpoints of other nodes (`--snat-address`). 0: that of the route.
                [SNAT_SOURCES_V4_COUNT, SNAT_SOURCES_V6_COUNT] => snat_sources: u32 = 0;
            }
            programs {
                /// The maps have room for what IPv4 Services need. If not, there are no such Services, and IPv4 packets and sockets pass unread.
                SERVES_V4 => serves_v4: bool = true;
                /// The same for IPv6.
                SERVES_V6 => serves_v6: bool = true;
                /// Reject TCP connections with a reset instead of an ICMP error (`--reject`).
                REJECT_WITH_RESET => reject_with_reset: bool = false;
                /// Socket hooks serve the node's own sockets only, not those of pods (`--pod-datapath tc`).
                SOCKETS_OF_NODE_ONLY => sockets_of_node_only: bool = false;
                /// Serve nodePorts at loopback addresses, to the node's own sockets (`--localhost-nodeports`).
                LOCALHOST_NODEPORTS => localhost_nodeports: bool = true;
                /// Cookie of the node's network namespace. 0: the initial namespace.
                NODE_NETNS => node_netns: u64 = 0;
                /// The kernel has `bpf_set_retval` (5.18): rejected sockets see ECONNREFUSED instead of EPERM.
                HAS_SET_RETVAL => has_set_retval: bool = false;
                /// Socket address programs may use socket storage.
                HAS_SK_STORAGE => has_sk_storage: bool = false;
                /// `bpf_l4_csum_replace` has `BPF_F_IPV6` (6.16).
                HAS_CSUM_IPV6 => has_csum_ipv6: bool = false;
                /// `bpf_fib_lookup` returns the source address that a route prefers (6.7).
                HAS_FIB_SRC => has_fib_src: bool = false;
                /// Socket address programs may read the process (`bpf_get_current_pid_tgid`, `bpf_get_current_comm`).
                HAS_CURRENT => has_current: bool = false;
            }
        }
    };
}

/// A type that a constant may have.
pub trait Constant: Copy {
    /// The type in the object.
    type Stored;

    /// From the object's type.
    fn from_stored(stored: Self::Stored) -> Self;

    /// The bytes for the object.
    fn encode(self) -> Encoded;
}

/// The bytes of a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    bytes: [u8; 8],
    length: usize,
}

impl Encoded {
    fn new<const LENGTH: usize>(value: [u8; LENGTH]) -> Self {
        let mut bytes = [0; 8];
        bytes[..LENGTH].copy_from_slice(&value);
        Self { bytes, length: LENGTH }
    }

    /// As many as the object has.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

macro_rules! integers {
    ($($type:ident)*) => { $(
        impl Constant for $type {
            type Stored = Self;

            #[inline(always)]
            fn from_stored(stored: Self) -> Self {
                stored
            }

            fn encode(self) -> Encoded {
                Encoded::new(self.to_ne_bytes())
            }
        }
    )* };
}

integers!(u16 u32 u64);

impl Constant for bool {
    type Stored = u8;

    #[inline(always)]
    fn from_stored(stored: u8) -> Self {
        stored != 0
    }

    fn encode(self) -> Encoded {
        Encoded::new([self as u8])
    }
}

/// A line of the list, for the documents.
#[derive(Clone, Copy, Debug)]
pub struct ConstantDoc {
    /// The symbol in the object.
    pub name: &'static str,
    /// Its type, as the list has it.
    pub r#type: &'static str,
    /// Its default, as the list has it.
    pub default: &'static str,
    /// What it means.
    pub doc: &'static str,
}

macro_rules! declare {
    (
        core { $(
            $(#[doc = $core_doc:literal])+
            $core_name:ident => $core:ident: $core_type:ident = $core_default:literal;
        )* }
        core_by_family { $(
            $(#[doc = $family_doc:literal])+
            [$v4_name:ident, $v6_name:ident] => $by_family:ident: $family_type:ident = $family_default:literal;
        )* }
        programs { $(
            $(#[doc = $doc:literal])+
            $name:ident => $field:ident: $type:ident = $default:literal;
        )* }
    ) => {
        /// The constants that the decision core reads, of one family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Settings {
            $($(#[doc = $core_doc])+ pub $core: $core_type,)*
            $($(#[doc = $family_doc])+ pub $by_family: $family_type,)*
        }

        /// All constants.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Constants {
            $($(#[doc = $core_doc])+ pub $core: $core_type,)*
            $($(#[doc = $family_doc])+ /// IPv4 first.
              pub $by_family: [$family_type; 2],)*
            $($(#[doc = $doc])+ pub $field: $type,)*
        }

        impl Default for Constants {
            /// Those of an object whose constants are not set.
            fn default() -> Self {
                Self {
                    $($core: $core_default,)*
                    $($by_family: [$family_default; 2],)*
                    $($field: $default,)*
                }
            }
        }

        impl Constants {
            /// Those that the decision core reads; `family` is the index of the family: 0 for IPv4.
            pub fn settings(&self, family: usize) -> Settings {
                Settings {
                    $($core: self.$core,)*
                    $($by_family: self.$by_family[family],)*
                }
            }

            /// All with their symbols, for the loader.
            pub fn encode(&self) -> [(&'static str, Encoded); CONSTANTS.len()] {
                [
                    $((stringify!($core_name), self.$core.encode()),)*
                    $((stringify!($v4_name), self.$by_family[0].encode()),
                      (stringify!($v6_name), self.$by_family[1].encode()),)*
                    $((stringify!($name), self.$field.encode()),)*
                ]
            }
        }

        /// All lines of the list.
        pub const CONSTANTS: &[ConstantDoc] = &[
            $(doc!($core_name $core_type $core_default $($core_doc)+),)*
            $(doc!($v4_name $family_type $family_default $($family_doc)+),
              doc!($v6_name $family_type $family_default $($family_doc)+),)*
            $(doc!($name $type $default $($doc)+),)*
        ];
    };
}

macro_rules! doc {
    ($name:ident $type:ident $default:literal $($doc:literal)+) => {
        ConstantDoc {
            name: stringify!($name),
            r#type: stringify!($type),
            default: stringify!($default),
            doc: concat!($($doc),+).trim_ascii(),
        }
    };
}

data_path_constants!(declare);
