//! Models as text, in the syntax of `onnx.parser` and `onnx.printer` (`docs/Syntax.md` of ONNX).
//!
//! ```
//! use qonvert::ir::text;
//!
//! let model = text::parse(r#"
//!     <ir_version: 8, opset_import: ["" : 17]>
//!     agraph (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1, 0, 0, 1}> {
//!         z = MatMul(x, w)
//!         y = com.microsoft.Foo<alpha = 0.5>(z, , w)
//!     }"#)?;
//! assert!(text::print(&model).contains("z = MatMul (x, w)"));
//! # Ok::<(), qonvert::Error>(())
//! ```
//!
//! The parser takes more than ONNX's: the header, the graph's name and the types of values may be left out, nodes may
//! stand in any order, and a value's type may stand in front of it where a node makes it (`float[2] y = Relu(x)`).
//! Elements are always numbers: `float16[2] {0.5, 1}` means these values, where ONNX's parser takes 16 bit and `bool`
//! elements for codes. Types below 16 bits of floating point have no number syntax; they are written as codes.

mod build;
mod elements;
mod lexer;
mod parse;
mod print;
mod syntax;
mod type_proto;

pub use print::{PrintOptions, print_with};

use super::Model;
use crate::error::Result;

/// The model that a text describes. Errors name the line and column, or the value and node.
pub fn parse(text: &str) -> Result<Model> {
    build::model(parse::model(text)?)
}

/// The text of a whole model, elements included: [`parse`] gives an equal model.
pub fn print(model: &Model) -> String {
    print_with(model, &PrintOptions::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{AttrValue, DType};

    /// Everything the syntax has, in the printer's own layout.
    const ALL: &str = r#"<
   ir_version: 9,
   opset_import: ["" : 17, "com.microsoft" : 1, "f" : 1],
   producer_name: "a \"b\"",
   metadata_props: ["k" : "v"]
>
agraph (float[N,3] x, float[] unknown_rank, float scalar, float[?,"a b",-1] u, seq(float[3]) q, optional(map(int64, string)) m, w) => (float[N,4] y, "z/1", x)
   <float[3] w = {1, 2.5, -1e-8}, bool[2] b = {1, 0}, float16[2] h = {0.5, inf}, bfloat16 bf = {1}, double[2] d = {nan, 0.1}, string[2] st = {"a", "b\\"}, complex64[1] c = {1, 2}, uint4[3] u4 = {1, 15, 3}, int4[3] i4 = {-8, 7, -1}, int2[2] i2 = {-2, 1}, int8[2] i8 = {-128, 127}, uint64 big = {18446744073709551615}, int64[0] none = {}, float8e4m3fn[1] f8 = {255}, float[N,4] t>
{
   [n1] t = MatMul (x, w)
   "z/1", "" = com.microsoft.Foo <a: int = 1, b: float = 1, c: string = "s", d: ints = [1, -2], e: floats = [1, 2.5], f: strings = ["x", "y"], g: tensor = float[2] {1, 2}, gn: tensor = int64 "n 1" = {3}, ii: ints = [], sub: graph = body (float p) => (o) <int32[1] k = {4}> {
      o = Add (p, t)
   }, ty: type_proto = seq(float[3]), ts: tensors = [float[1] {1}, int64 {2}], gs: graphs = [g1 () => (r) {
      r = Neg (t)
   }, g2 () => (t) {
   }]> (t, "", w)
   ["a node"] y = f.foo:ov <alpha: float = 2> (x, h)
}
<
   domain: "f",
   overload: "ov",
   opset_import: ["" : 17],
   doc_string: "hi"
>
foo <alpha, beta: int = 3> (x, k) => (y)
{
   y = Elu <alpha: float = @alpha> (x)
}
"#;

    #[test]
    fn everything_comes_back() {
        let model = parse(ALL).unwrap();
        model.verify().unwrap();
        assert_eq!(print(&model), ALL);
    }

    #[test]
    fn much_may_be_left_out() {
        let m = parse("(x) => (y) { y = Neg(z) # behind\n float[2] z = Clip(x, , float_max) } ").unwrap_err();
        assert!(m.to_string().contains("float_max"), "{m}");
        let m =
            parse("(x, float hi = {6}) => (y) { y = Neg(z) float[2] z = Foo<a=1, b=1., c=\"s\", v=[1,2]>(x, , hi) }");
        let m = m.unwrap();
        let nodes = m.nodes(m.main());
        assert_eq!(nodes.iter().map(|&n| m.node(n).op_type.as_str()).collect::<Vec<_>>(), ["Foo", "Neg"]);
        let foo = m.node(nodes[0]);
        assert_eq!(foo.inputs().len(), 3);
        assert!(matches!(foo.attr("b"), Some(AttrValue::Float(f)) if *f == 1.0));
        assert_eq!((foo.int("a"), foo.string("c"), foo.ints("v")), (Some(1), Some("s"), Some(&[1i64, 2][..])));
        let hi = m.value(foo.input(2).unwrap());
        assert!(hi.is_input() && hi.initializer().is_some());
        assert_eq!(m.value(foo.output(0).unwrap()).dtype(), Some(DType::Float));
        assert_eq!(m.opset(""), Some(21));
    }

    #[test]
    fn large_tensors_are_abbreviated() {
        let m = parse("() => (w) <int8[5] w = {1,2,3,4,5}> {}").unwrap();
        let text = print_with(&m, &PrintOptions { max_elements: Some(3), ..PrintOptions::default() });
        assert!(text.contains("int8[5] w = {1, 2, 3, ...}"), "{text}");
        assert!(parse(&text).unwrap_err().to_string().contains("abbreviated"));
    }

    #[test]
    fn errors_say_where() {
        for (text, word) in [
            ("", "expected"),
            ("(x) => (y) {\n y = }", "line 2"),
            ("(x) => (y) { y = Neg(x) y = Abs(x) }", "\"y\""),
            ("(x) => (y) { y = Neg(q) }", "\"q\""),
            ("() => (w) <float[3] w = {1,2}> {}", "3"),
            ("() => (w) <int8[1] w = {128}> {}", "128"),
            ("() => (w) <w = {128}> {}", "type"),
            ("() => (w) <float[1000000000000,1000000000000] w = {}> {}", "large"),
            ("(x) => (x) { \"abc", "string"),
            ("(x) => (y) { y = Foo<a = [1, \"s\"]>(x) }", "list"),
            ("(x) => (y) { a = Neg(y) y = Neg(a) }", "cycle"),
        ] {
            let e = parse(text).unwrap_err().to_string();
            assert!(e.contains(word), "{text:?} gave {e:?}");
        }
        let deep = "seq(".repeat(100_000);
        assert!(parse(&format!("({deep}")).unwrap_err().to_string().contains("deep"));
        let graphs = "(x) => (y) { y = If<g = ".repeat(100_000);
        assert!(parse(&graphs).unwrap_err().to_string().contains("deep"));
    }
}
