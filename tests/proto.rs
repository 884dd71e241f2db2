//! `proto/onnx.proto` holds every message, field and enum value of the ONNX release that its head names: compared with a
//! table that was read from the descriptor in the `onnx` wheel, in both directions.

use std::collections::BTreeSet;

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// Lines "message or enum, number, name, label, type, oneof", as `tests/data/onnx_descriptor.tsv` has them.
fn compiled() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(qonvert::onnx_file::DESCRIPTORS).unwrap();
    let mut lines = BTreeSet::new();
    for file in &set.file {
        assert_eq!(file.package(), "onnx");
        for m in &file.message_type {
            message("onnx", m, &mut lines);
        }
        for e in &file.enum_type {
            values("onnx", e, &mut lines);
        }
    }
    lines
}

fn message(scope: &str, m: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let name = format!("{scope}.{}", m.name());
    for f in &m.field {
        let packed = f.options.as_ref().is_some_and(|o| o.packed());
        let label = match f.label() {
            Label::Repeated if packed => "packed",
            Label::Optional => "optional",
            Label::Repeated => "repeated",
            Label::Required => "required",
        };
        let ty = match f.r#type() {
            Type::Message | Type::Enum => f.type_name().trim_start_matches('.').to_owned(),
            scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        };
        let oneof = f.oneof_index.map_or("-", |i| m.oneof_decl[i as usize].name());
        lines.insert([&name, &f.number().to_string(), f.name(), label, &ty, oneof].join("\t"));
    }
    m.nested_type.iter().for_each(|n| message(&name, n, lines));
    m.enum_type.iter().for_each(|e| values(&name, e, lines));
}

fn values(scope: &str, e: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    for v in &e.value {
        lines.insert(format!("{scope}.{}\t{}\t{}\tvalue\t-\t-", e.name(), v.number(), v.name()));
    }
}

#[test]
fn the_schema_is_the_standards() {
    let table = include_str!("data/onnx_descriptor.tsv");
    let table: BTreeSet<String> = table.lines().filter(|l| !l.starts_with('#')).map(str::to_owned).collect();
    let ours = compiled();
    assert!(table.len() > 190, "the table has {} lines", table.len());
    let missing: Vec<_> = table.difference(&ours).collect();
    let extra: Vec<_> = ours.difference(&table).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nnot in the standard: {extra:#?}");
}

#[test]
fn the_newest_ir_version_is_known() {
    assert_eq!(qonvert::onnx_file::NEWEST_IR_VERSION, 14);
}
