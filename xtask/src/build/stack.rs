//! How much stack calls take together: old kernels refuse programs that newer ones take, and machines that show it take minutes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use object::{Object, ObjectSection};

use super::guard::{Function, INSTRUCTION, calls, functions};

/// The limit for all functions of a chain of calls (`MAX_BPF_STACK`).
const MOST: u64 = 512;
/// Up to Linux 6.2 each function's stack counts in steps of so many bytes (`check_max_stack_depth`).
const STEP: u64 = 32;

/// Chains of calls that take more stack than the kernel allows, the deepest of each function without callers.
pub(crate) fn too_deep(elf: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(elf).context("the object is not an ELF file")?;
    let mut stacks = BTreeMap::new();
    for function in functions(&file)? {
        let section = file.section_by_index(function.section)?;
        stacks.insert(function.name, own_stack(&function, section.data()?));
    }
    let mut callees: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (caller, callee) in calls(&file)? {
        callees.entry(caller).or_default().insert(callee);
    }
    let called: BTreeSet<&str> = callees.values().flatten().copied().collect();
    let roots = stacks.keys().filter(|name| !called.contains(*name));
    let deepest = roots.map(|name| deepest(name, &stacks, &callees, &mut Vec::new()));
    Ok(deepest
        .filter(|(depth, _)| *depth > MOST)
        .map(|(depth, chain)| {
            let chain: Vec<String> = chain
                .into_iter()
                .map(|name| format!("{name} ({})", stacks.get(name).unwrap_or(&0)))
                .collect();
            format!("{depth} bytes: {}", chain.join(" -> "))
        })
        .collect())
}

/// How deep a function and its callees go, and by which way.
fn deepest<'data>(
    name: &'data str,
    stacks: &BTreeMap<&'data str, u64>,
    callees: &BTreeMap<&'data str, BTreeSet<&'data str>>,
    above: &mut Vec<&'data str>,
) -> (u64, Vec<&'data str>) {
    // The kernel refuses recursion; this need only end.
    if above.contains(&name) {
        return (0, Vec::new());
    }
    above.push(name);
    let below = callees.get(name).into_iter().flatten();
    let below = below.map(|callee| deepest(callee, stacks, callees, above)).max_by_key(|(depth, _)| *depth);
    above.pop();
    let own = stacks.get(name).copied().unwrap_or(0).max(1).next_multiple_of(STEP);
    let (depth, chain) = below.unwrap_or_default();
    (own + depth, std::iter::once(name).chain(chain).collect())
}

/// The deepest byte of its stack that a function names (RFC 9669, section 4: register 10 is the frame pointer).
fn own_stack(function: &Function<'_>, section: &[u8]) -> u64 {
    const FRAME: u8 = 10;
    const LOAD: u8 = 1;
    const STORES: [u8; 2] = [2, 3];
    const MOVE: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let code = section.get(function.start as usize..function.end as usize).unwrap_or_default();
    let mut deepest = 0;
    // Registers that point to the top of the stack.
    let mut pointers = [false; 16];
    for instruction in code.chunks_exact(INSTRUCTION) {
        let [opcode, registers, low, high, immediate @ ..] = instruction else { continue };
        let (destination, source) = (registers & 0xf, registers >> 4);
        let offset = i64::from(i16::from_le_bytes([*low, *high]));
        let immediate = immediate.try_into().map_or(0, |bytes| i64::from(i32::from_le_bytes(bytes)));
        let class = opcode & 7;
        let base = if class == LOAD { source } else { destination };
        if (class == LOAD || STORES.contains(&class)) && base == FRAME {
            deepest = deepest.max(-offset);
        }
        let pointer = &mut pointers[usize::from(destination)];
        if *opcode == ADD && *pointer {
            deepest = deepest.max(-immediate);
        }
        *pointer = *opcode == MOVE && source == FRAME;
    }
    deepest.max(0) as u64
}

#[cfg(test)]
mod tests {
    use object::{
        Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
        write::{Object, Symbol, SymbolSection},
    };

    use super::*;

    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    /// Stores a word at an offset from the frame pointer.
    fn store(offset: i16) -> [u8; 8] {
        let [low, high] = offset.to_le_bytes();
        [0x7b, 0x1a, low, high, 0, 0, 0, 0]
    }

    /// A pointer to there.
    fn point(offset: i32) -> [[u8; 8]; 2] {
        let mut add = [0x07, 2, 0, 0, 0, 0, 0, 0];
        add[4..].copy_from_slice(&offset.to_le_bytes());
        [[0xbf, 0xa2, 0, 0, 0, 0, 0, 0], add]
    }

    fn call(distance: i32) -> [u8; 8] {
        let mut instruction = [0x85, 0x10, 0, 0, 0, 0, 0, 0];
        instruction[4..].copy_from_slice(&distance.to_le_bytes());
        instruction
    }

    /// `hook` calls `helper`, which begins behind it.
    fn elf(hook: [u8; 8], helper: &[[u8; 8]]) -> Vec<u8> {
        let mut file = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let section = file.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
        let code = [&[hook, call(1), EXIT][..], helper, &[EXIT]].concat();
        file.append_section_data(section, &code.concat(), 8);
        let size = 8 * (helper.len() as u64 + 1);
        for (name, value, size) in [("hook", 0, 24), ("helper", 24, size)] {
            file.add_symbol(Symbol {
                name: name.into(),
                value,
                size,
                kind: SymbolKind::Text,
                scope: SymbolScope::Linkage,
                weak: false,
                section: SymbolSection::Section(section),
                flags: SymbolFlags::None,
            });
        }
        file.write().unwrap()
    }

    #[test]
    fn frames_count_in_steps_and_together() {
        let found = |hook, helper: &[[u8; 8]]| too_deep(&elf(hook, helper)).unwrap();
        assert!(found(store(-256), &[store(-256)]).is_empty());
        assert_eq!(found(store(-264), &[store(-256)]), ["544 bytes: hook (264) -> helper (256)"]);
        assert_eq!(found(store(-8), &point(-488)), ["544 bytes: hook (8) -> helper (488)"]);
        assert!(found(store(-8), &point(-480)).is_empty());
    }
}
