//! Checks on a built object.

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind};

/// Functions that the compiler calls for copies and comparisons it does not inline.
const MEMORY_FUNCTIONS: &[&str] = &["memcpy", "memmove", "memset", "memcmp", "bcmp"];

/// Size of an instruction in bytes (RFC 9669, section 3).
pub(super) const INSTRUCTION: usize = 8;
const OPCODE_CALL: u8 = 0x85;
/// In the source register of a call: the callee is a function of the object, not a helper of the kernel.
const PSEUDO_CALL: u8 = 1;

pub(super) struct Function<'data> {
    pub(super) name: &'data str,
    pub(super) section: SectionIndex,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The calls to memory functions, as "caller calls callee". Functions without callers are left out: the loader drops them.
pub(crate) fn memory_calls(elf: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(elf).context("the object is not an ELF file")?;
    let is_memory = |name: &str| MEMORY_FUNCTIONS.contains(&name);
    let mut calls: Vec<String> = calls(&file)?
        .into_iter()
        // memmove and memcpy may share code; only calls from other functions count.
        .filter(|(caller, callee)| is_memory(callee) && !is_memory(caller))
        .map(|(caller, callee)| format!("{caller} calls {callee}"))
        .collect();
    calls.sort();
    calls.dedup();
    Ok(calls)
}

/// Pairs of caller and callee.
pub(super) fn calls<'data>(file: &object::File<'data>) -> Result<Vec<(&'data str, &'data str)>> {
    let functions = functions(file)?;
    let find = |section: SectionIndex, offset: u64| {
        functions
            .iter()
            .find(|function| function.section == section && (function.start..function.end).contains(&offset))
    };
    let mut calls = Vec::new();
    for section in file.sections().filter(|section| section.kind() == object::SectionKind::Text) {
        let relocations: std::collections::HashMap<_, _> = section.relocations().collect();
        for (index, instruction) in section.data()?.chunks_exact(INSTRUCTION).enumerate() {
            let [OPCODE_CALL, registers, _, _, immediate @ ..] = instruction else { continue };
            if registers >> 4 != PSEUDO_CALL {
                continue;
            }
            let offset = (index * INSTRUCTION) as u64;
            let immediate = i64::from(i32::from_le_bytes(<[u8; 4]>::try_from(immediate)?));
            // The callee's distance in instructions from the next one, from the symbol where there is a relocation.
            let distance = |from: u64| from.wrapping_add_signed((immediate + 1) * INSTRUCTION as i64);
            let callee = match relocations.get(&offset).map(object::Relocation::target) {
                Some(RelocationTarget::Symbol(symbol)) => {
                    let symbol = file.symbol_by_index(symbol)?;
                    match symbol.kind() {
                        SymbolKind::Section => symbol
                            .section_index()
                            .and_then(|to| find(to, distance(0)))
                            .map(|callee| callee.name),
                        _ => Some(symbol.name()?),
                    }
                }
                _ => find(section.index(), distance(offset)).map(|callee| callee.name),
            };
            let caller = find(section.index(), offset).map_or("?", |function| function.name);
            calls.extend(callee.map(|callee| (caller, callee)));
        }
    }
    Ok(calls)
}

/// Each function with its number of instructions, largest first.
pub(crate) fn program_sizes(elf: &[u8]) -> Result<Vec<(String, u64)>> {
    let file = object::File::parse(elf).context("the object is not an ELF file")?;
    let size = |function: &Function<'_>| (function.end - function.start) / INSTRUCTION as u64;
    let mut sizes: Vec<_> =
        functions(&file)?.iter().map(|function| (function.name.to_owned(), size(function))).collect();
    sizes.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    Ok(sizes)
}

pub(super) fn functions<'data>(file: &object::File<'data>) -> Result<Vec<Function<'data>>> {
    let symbols = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    symbols
        .filter_map(|symbol| symbol.section_index().map(|section| (symbol, section)))
        .map(|(symbol, section)| {
            let start = symbol.address();
            Ok(Function { name: symbol.name()?, section, start, end: start + symbol.size() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use object::{
        Architecture, BinaryFormat, Endianness, RelocationFlags, SectionKind, SymbolFlags, SymbolScope, elf,
        write::{Object, Relocation, StandardSection, Symbol, SymbolSection},
    };

    use super::*;

    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    fn call(registers: u8, immediate: i32) -> [u8; 8] {
        let mut instruction = [OPCODE_CALL, registers, 0, 0, 0, 0, 0, 0];
        instruction[4..].copy_from_slice(&immediate.to_le_bytes());
        instruction
    }

    /// `.text` with memcpy at 8, and a section with the program `hook`, which starts with `instruction`.
    fn elf_with(instruction: [u8; 8], relocate_to: Option<&str>) -> Vec<u8> {
        let mut file = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
        let text = file.section_id(StandardSection::Text);
        file.append_section_data(text, &[EXIT, EXIT].concat(), 8);
        let hooks = file.add_section(Vec::new(), b"classifier".to_vec(), SectionKind::Text);
        file.append_section_data(hooks, &[instruction, EXIT].concat(), 8);
        let mut function = |name: &str, section, value, size| {
            file.add_symbol(Symbol {
                name: name.into(),
                value,
                size,
                kind: SymbolKind::Text,
                scope: SymbolScope::Linkage,
                weak: false,
                section: SymbolSection::Section(section),
                flags: SymbolFlags::None,
            })
        };
        let helper = function("helper", text, 0, 8);
        let memcpy = function("memcpy", text, 8, 8);
        function("hook", hooks, 0, 16);
        let target = match relocate_to {
            Some("helper") => Some(helper),
            Some("memcpy") => Some(memcpy),
            Some(_) => Some(file.section_symbol(text)),
            None => None,
        };
        if let Some(symbol) = target {
            let flags = RelocationFlags::Elf { r_type: elf::R_BPF_64_32 };
            file.add_relocation(hooks, Relocation { offset: 0, symbol, addend: 0, flags }).unwrap();
        }
        file.write().unwrap()
    }

    #[test]
    fn names_the_caller_of_a_memory_function() {
        let hook_calls_memcpy = vec!["hook calls memcpy".to_owned()];
        let cases = [
            ("no call", elf_with(EXIT, None), vec![]),
            ("a kernel helper of the same number", elf_with(call(0, 1), None), vec![]),
            ("another function", elf_with(call(0x10, -1), Some("helper")), vec![]),
            ("by symbol", elf_with(call(0x10, -1), Some("memcpy")), hook_calls_memcpy.clone()),
            ("by section and distance", elf_with(call(0x10, 0), Some(".text")), hook_calls_memcpy),
            ("another one by section and distance", elf_with(call(0x10, -1), Some(".text")), vec![]),
        ];
        for (name, elf, expected) in cases {
            assert_eq!(memory_calls(&elf).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn counts_instructions() {
        let sizes = program_sizes(&elf_with(EXIT, None)).unwrap();
        assert_eq!(sizes[0], ("hook".to_owned(), 2));
    }

    #[test]
    fn refuses_other_files_than_objects() {
        assert!(memory_calls(b"not an object").is_err());
    }
}
