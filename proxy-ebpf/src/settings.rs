//! Constants that the agent sets before loading: the verifier drops the branches that they disable.
//!
//! The list is `data_path_constants!` of proxy-common.

use aya_ebpf::Global;
use proxy_common::layout::config::{Constant, Settings};

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
        $(constant!($core_name: $core_type = $core_default);)*
        $(constant!($v4_name: $family_type = $family_default);)*
        $(constant!($v6_name: $family_type = $family_default);)*
        $(constant!($name: $type = $default);)*

        /// The settings that the decision core reads. Arguments are those that differ by family.
        #[inline(always)]
        pub(crate) fn settings($($by_family: $family_type),*) -> Settings {
            Settings {
                $($core: Constant::from_stored($core_name.load()),)*
                $($by_family,)*
            }
        }
    };
}

macro_rules! constant {
    ($name:ident: $type:ident = $default:literal) => {
        #[unsafe(no_mangle)]
        pub(crate) static $name: Global<<$type as Constant>::Stored> =
            Global::new($default as <$type as Constant>::Stored);
    };
}

proxy_common::data_path_constants!(declare);

/// About a second in jiffies.
#[inline(always)]
pub(crate) fn second() -> u32 {
    IDLE.load() >> 3
}
