//! What a file that is no ONNX model seems to be instead, from its first bytes.

use crate::error::Error;

/// How many bytes are looked at.
pub(super) const ENOUGH: usize = 1024;

/// Bytes at an offset, what a file that has them is, and the next step.
const SIGNATURES: &[(usize, &[u8], &str, &str)] = &[
    (
        0,
        b"PK\x03\x04",
        "a zip archive (PyTorch .pt files and .npz files are)",
        "unpack it, or export it with torch.onnx.export",
    ),
    (0, b"PK\x05\x06", "an empty zip archive", "get the file again"),
    (
        0,
        b"\x80\x02",
        "a Python pickle (old PyTorch files are)",
        "load it in Python and export it with torch.onnx.export",
    ),
    (0, b"\x80\x04", "a Python pickle", "load it in Python and export it with torch.onnx.export"),
    (0, b"\x1f\x8b", "gzip-compressed", "unpack it with gunzip"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it with unzstd"),
    (0, b"BZh", "bzip2-compressed", "unpack it with bunzip2"),
    (0, b"\xfd7zXZ", "xz-compressed", "unpack it with unxz"),
    (0, b"7z\xbc\xaf", "a 7-zip archive", "unpack it"),
    (0, b"\x89HDF", "an HDF5 file (Keras .h5 files are)", "export it with tf2onnx"),
    (0, b"\x93NUMPY", "a NumPy array", "name the model, not its data"),
    (0, b"GGUF", "a GGUF file", "export the model as ONNX"),
    (0, b"\x89PNG", "a PNG picture", "name the model, not its data"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "name the model, not its data"),
    (0, b"%PDF", "a PDF document", "name the model"),
    (0, b"\x7fELF", "a program or library", "name the model"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx"),
    (4, b"ORTM", "a model in ONNX Runtime's own .ort format", "use the .onnx file that it was made from"),
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, which stands for a file that was not downloaded",
        "run `git lfs pull`",
    ),
];

/// The error for a file of `len` bytes that starts with `start`.
pub(super) fn explain(start: &[u8], len: usize, fact: &str) -> Error {
    let known = SIGNATURES.iter().find(|(at, bytes, ..)| start.get(*at..).is_some_and(|s| s.starts_with(bytes)));
    let seems = known.map(|&(_, _, what, next)| (what, next)).or_else(|| text(start));
    match seems {
        Some((what, next)) => {
            Error::malformed(format!("is not an ONNX model: it seems to be {what} ({len} bytes)")).help(next)
        }
        None => Error::malformed(format!("{fact} ({len} bytes)"))
            .help("check that the file is complete and was exported as ONNX (not .pt, .tflite or .ort)"),
    }
}

fn text(start: &[u8]) -> Option<(&'static str, &'static str)> {
    // The last character may be cut.
    let readable = match std::str::from_utf8(start) {
        Ok(s) => s,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&start[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if readable.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let low = readable.trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    Some(if low.starts_with("<!doctype") || low.starts_with("<html") || low.starts_with("<?xml") {
        (
            "a web page: the download did not give the file itself",
            "download the file behind the page (its \"raw\" link)",
        )
    } else if low.starts_with('{') || low.starts_with('[') {
        ("JSON text", "name the .onnx file")
    } else {
        ("text", "name the .onnx file")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_seems_to_be() {
        for (start, word) in [
            (&b"PK\x03\x04\x14\x00"[..], "zip"),
            (b"\n <!DOCTYPE html>", "web page"),
            (b"{\"a\": 1}", "JSON"),
            (b"hello \xc3", "text"),
            (b"\x1c\x00\x00\x00TFL3", "Lite"),
            (b"\x00\x01\x02", "cut short"),
        ] {
            let e = explain(start, 7, "is not an ONNX model, or is cut short");
            assert!(e.message().contains(word) && e.message().contains("7 bytes"), "{e}");
        }
    }
}
