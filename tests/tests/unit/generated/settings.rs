//! The table of data-path settings, from their list.

use proxy_common::layout::config::CONSTANTS;

use super::{header, row};

/// Every constant of a loaded program.
pub(super) fn table() -> String {
    let mut table = header(&["constant", "type", "default in the object", "meaning"]);
    for constant in CONSTANTS {
        let default = constant.default.replace('_', ",");
        table += &row(&[&format!("`{}`", constant.name), constant.r#type, &default, constant.doc]);
    }
    table
}
