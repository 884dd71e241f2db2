use std::io::{Cursor, Write};

use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::*;

/// A `.npy` file of this type, order and shape over these bytes.
fn npy(descr: &str, fortran: bool, dims: &[usize], bytes: &[u8]) -> Vec<u8> {
    let shape: String = dims.iter().map(|d| format!("{d}, ")).collect();
    let order = if fortran { "True" } else { "False" };
    let text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({shape}), }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(bytes);
    out
}

/// Numbers from 0 up as float32.
fn ramp(dims: &[usize]) -> Vec<u8> {
    let bytes: Vec<u8> = (0..dims.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes()).collect();
    npy("<f4", false, dims, &bytes)
}

fn npz(arrays: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        zip.start_file(format!("{name}.npy"), SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn spec(name: &str, dtype: DType, dims: &[i64]) -> InputSpec {
    let dim = |&d: &i64| if d < 0 { Dim::Named("n".into()) } else { Dim::Known(d) };
    InputSpec { name: name.into(), dtype, dims: Some(dims.iter().map(dim).collect()) }
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn open_npz(&self, arrays: &[(&str, Vec<u8>)], specs: &[InputSpec]) -> Result<Dataset> {
        let stored = self.put("stored.npz", &npz(arrays, CompressionMethod::Stored));
        let deflated = self.put("deflated.npz", &npz(arrays, CompressionMethod::Deflated));
        let (a, b) = (open(&stored, specs), open(&deflated, specs));
        if let (Ok(a), Ok(b)) = (&a, &b) {
            for i in 0..a.len() {
                let (x, y) = (a.sample(i), b.sample(i));
                let same = |(x, y): (Vec<Tensor>, Vec<Tensor>)| x.iter().zip(&y).all(|(x, y)| x.same_content(y));
                assert!(x.ok().zip(y.ok()).is_none_or(same), "stored and deflated differ");
            }
        }
        a
    }
}

fn open(path: &Path, specs: &[InputSpec]) -> Result<Dataset> {
    Dataset::open(path, specs, &DatasetOptions::default())
}

fn message(result: Result<Dataset>) -> String {
    let e = result.err().expect("must be refused");
    format!("{e} | {}", e.help_text().unwrap_or_default())
}

#[test]
fn own_rank_one_more_fixed_batch_and_scalars() {
    let files = Files::new();
    let scalars = npy("<i8", false, &[4], &[1i64, 2, 3, 4].map(i64::to_le_bytes).concat());
    let arrays = [("x", ramp(&[4, 3])), ("state", ramp(&[4, 2, 1, 5])), ("sr", scalars), ("y", ramp(&[4]))];
    let specs =
        [spec("x", DType::Float, &[-1, 3]), spec("state", DType::Float, &[2, -1, 5]), spec("sr", DType::Int64, &[])];
    let data = files.open_npz(&arrays, &specs).unwrap();
    assert_eq!((data.len(), data.has_labels()), (4, true));
    let s = data.sample(2).unwrap();
    assert_eq!((s[0].dims(), s[1].dims(), s[2].dims()), (&[1, 3][..], &[2, 1, 5][..], &[][..]));
    assert_eq!((s[0].to_f32().unwrap(), s[2].scalar_i64()), (vec![6.0, 7.0, 8.0], Some(3)));
    assert_eq!(s[1].to_f32().unwrap()[0], 20.0);
    assert_eq!(data.labels(3).unwrap().unwrap().to_f32().unwrap(), [3.0]);
    assert!(data.sample(4).is_err());

    // A fixed batch of 2, a rest, one constant for all samples, and labels for each row.
    let arrays = [("x", ramp(&[5, 3])), ("labels", ramp(&[5])), ("c", npy("<f4", false, &[], &7f32.to_le_bytes()))];
    let data = files.open_npz(&arrays, &[spec("x", DType::Float, &[2, 3]), spec("c", DType::Float, &[])]).unwrap();
    assert_eq!((data.len(), data.notes()[0].code), (2, "rest_left_out"));
    let s = data.sample(1).unwrap();
    assert_eq!((s[0].dims(), s[0].to_f32().unwrap()[0], s[1].scalar_f32()), (&[2, 3][..], 6.0, Some(7.0)));
    assert_eq!(data.labels(1).unwrap().unwrap().to_f32().unwrap(), [2.0, 3.0]);
}

#[test]
fn orders_of_bytes_and_indices() {
    let files = Files::new();
    let big = [0u16, 1, 2, 3, 4, 5].map(u16::to_be_bytes).concat();
    for (fortran, want) in [(false, [2, 3]), (true, [1, 4])] {
        // Fortran order: element [i, j] is number i + 3 j.
        let data = files.open_npz(&[("x", npy(">u2", fortran, &[3, 2], &big))], &[spec("x", DType::Int64, &[-1, 2])]);
        assert_eq!(data.unwrap().sample(1).unwrap()[0].to_i64().unwrap(), want);
    }
}

#[test]
fn names_near_names_and_order() {
    let files = Files::new();
    let two = [spec("input:0", DType::Float, &[-1, 3]), spec("mask", DType::Float, &[-1, 2])];
    let near = files.open_npz(&[("mask", ramp(&[1, 2])), ("Input_0", ramp(&[1, 3]))], &two);
    assert_eq!(near.unwrap().sample(0).unwrap()[0].dims(), [1, 3]);
    let by_order =
        files.open_npz(&[("arr_0", ramp(&[1, 3])), ("arr_1", ramp(&[1, 2])), ("label", ramp(&[1]))], &two).unwrap();
    assert_eq!((by_order.notes().len(), by_order.notes()[0].code, by_order.has_labels()), (2, "array_by_order", true));
    let text = message(files.open_npz(&[("mask", ramp(&[1, 2])), ("inptu", ramp(&[1, 3]))], &two));
    assert!(text.contains("input:0") && text.contains("did you mean \"inptu\""), "{text}");
}

#[test]
fn what_does_not_fit_names_both_sides() {
    let files = Files::new();
    let x = [spec("x", DType::Float, &[-1, 3, 8])];
    for (array, parts) in [
        (ramp(&[4, 3, 9]), ["value \"x\"", "[n, 3, 8]", "[4, 3, 9]"]),
        (ramp(&[4, 3]), ["value \"x\"", "[n, 3, 8]", "[4, 3]"]),
        (npy("<c8", false, &[1], &[0; 8]), ["array \"x\"", "<c8", "type"]),
        (npy("|O", false, &[1], &[0; 8]), ["array \"x\"", "Python objects", "folder"]),
        (npy("<f4", false, &[4, 3, 8], &[0; 12]), ["array \"x\"", "needs", "cut off"]),
        (ramp(&[0, 3, 8]), ["no samples", "", ""]),
    ] {
        let text = message(files.open_npz(&[("x", array)], &x));
        assert!(parts.iter().all(|p| text.contains(p)), "{text}");
    }
    let text = message(files.open_npz(&[("x", ramp(&[4, 3]))], &[spec("x", DType::Int64, &[-1, 3])]));
    assert!(text.contains("takes int64") && text.contains("holds float"), "{text}");
    let two = [spec("x", DType::Float, &[-1, 3]), spec("z", DType::Float, &[-1, 3])];
    let text = message(files.open_npz(&[("x", ramp(&[4, 3])), ("z", ramp(&[5, 3]))], &two));
    assert!(text.contains("4 samples for input \"x\" and 5 for \"z\""), "{text}");
    let wide = npy("<i8", false, &[1, 1], &(1i64 << 40).to_le_bytes());
    let data = files.open_npz(&[("x", wide)], &[spec("x", DType::Int32, &[-1, 1])]).unwrap();
    assert!(data.sample(0).unwrap_err().to_string().contains("1099511627776 does not fit"));
}

#[test]
fn damaged_files_are_errors() {
    let files = Files::new();
    let x = [spec("x", DType::Float, &[-1, 30])];
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let whole = npz(&[("x", ramp(&[4, 30]))], method);
        for cut in (0..whole.len()).step_by(5) {
            if let Ok(data) = open(&files.put("a.npz", &whole[..cut]), &x) {
                (0..data.len()).for_each(|i| drop(data.sample(i)));
            }
        }
        for at in (0..whole.len()).step_by(2) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            if let Ok(data) = open(&files.put("a.npz", &bytes), &x) {
                (0..data.len().min(9)).for_each(|i| drop(data.sample(i)));
            }
        }
    }
    assert!(message(open(&files.put("b.npz", b"PK"), &x)).contains("cut off"));
    assert!(open(&files.put("c.npz", b""), &x).is_err());
    assert!(open(Path::new("/nowhere/x.npz"), &x).is_err());
}

#[test]
fn folders() {
    let files = Files::new();
    let x = [spec("x", DType::Float, &[-1, 3, -1])];
    files.put("npy/b.npy", &ramp(&[1, 3, 5]));
    files.put("npy/a.npy", &ramp(&[3, 4]));
    files.put("npy/c.npy", &ramp(&[2, 3, 4]));
    files.put("npy/.hidden.npy", b"");
    files.put("npy/readme.txt", b"");
    let data = open(&files.0.path().join("npy"), &x).unwrap();
    let dims: Vec<_> = (0..data.len()).map(|i| data.sample(i).unwrap()[0].dims().to_vec()).collect();
    assert_eq!(dims, [vec![1, 3, 4], vec![1, 3, 5], vec![2, 3, 4]]);
    assert_eq!(data.notes()[0].code, "files_left_out");

    for (i, n) in [2usize, 1, 3, 1, 1, 1].into_iter().enumerate() {
        files.put(&format!("npz/{i}.npz"), &npz(&[("x", ramp(&[n, 3, i + 1]))], CompressionMethod::Deflated));
    }
    let data = open(&files.0.path().join("npz"), &x).unwrap();
    let widths: Vec<_> = (0..data.len()).map(|i| data.sample(i).unwrap()[0].dims()[2]).collect();
    assert_eq!(widths, [1, 1, 2, 3, 3, 3, 4, 5, 6]);
    assert_eq!(data.sample(0).unwrap()[0].to_f32().unwrap()[0], 0.0);

    files.put("mixed/a.npy", &ramp(&[1, 3, 5]));
    files.put("mixed/b.png", b"");
    assert!(message(open(&files.0.path().join("mixed"), &x)).contains("mixes"));
    files.put("empty/a.txt", b"");
    assert!(message(open(&files.0.path().join("empty"), &x)).contains("of 1 file here none is data"));
}

#[test]
fn pictures_in_folders_below() {
    let files = Files::new();
    files.put("p/cat/x", b"");
    fs::remove_file(files.0.path().join("p/cat/x")).unwrap();
    for (name, shade) in [("cat/1.png", 10), ("dog/0.png", 20), ("dog/1.bmp", 30)] {
        fs::create_dir_all(files.0.path().join("p").join(name).parent().unwrap()).unwrap();
        image::GrayImage::from_pixel(5, 5, image::Luma([shade])).save(files.0.path().join("p").join(name)).unwrap();
    }
    let path = files.0.path().join("p");
    let data = open(&path, &[spec("x", DType::Uint8, &[-1, 1, 4, 4])]).unwrap();
    let shades: Vec<_> = (0..data.len()).map(|i| data.sample(i).unwrap()[0].to_i64().unwrap()[0]).collect();
    assert_eq!(shades, [10, 20, 30]);
    assert_eq!(open(&path, &[spec("x", DType::Uint8, &[2, 1, 4, 4])]).unwrap().len(), 1);
    files.put("p/dog/2.png", b"no picture");
    let data = open(&path, &[spec("x", DType::Uint8, &[-1, 1, 4, 4])]).unwrap();
    assert!(data.sample(3).unwrap_err().to_string().contains("2.png"));
    let stats = open(&path, &[spec("x", DType::Float, &[-1, 1, 4, 4])]).unwrap().input_stats(&[0, 1]).unwrap();
    assert_eq!((stats[0].1.samples, stats[0].1.max), (2, 20.0 / 255.0));
}

#[test]
fn a_folder_of_npz_without_batch_axis_and_scalar_labels() {
    let files = Files::new();
    for i in 0..3u8 {
        let label = npy("<i8", false, &[], &i64::from(i).to_le_bytes());
        files.put(&format!("f/{i}.npz"), &npz(&[("x", ramp(&[3])), ("labels", label)], CompressionMethod::Stored));
    }
    let data = open(&files.0.path().join("f"), &[spec("x", DType::Float, &[-1, 3])]).unwrap();
    assert_eq!((data.len(), data.has_labels(), data.sample(1).unwrap()[0].dims()), (3, true, &[1, 3][..]));
    assert_eq!(data.labels(2).unwrap().unwrap().to_i64().unwrap(), [2]);
    // A file by itself holds samples along axis 0.
    assert!(
        message(open(
            &files.put("one.npz", &npz(&[("x", ramp(&[3]))], CompressionMethod::Stored)),
            &[spec("x", DType::Float, &[-1, 3])]
        ))
        .contains("the input has shape [n, 3]")
    );
}

#[test]
fn messages_name_both_numbers() {
    let files = Files::new();
    let few = files.open_npz(&[("x", ramp(&[3, 5]))], &[spec("x", DType::Float, &[4, 5])]);
    assert!(message(few).contains("the input takes batches of 4, array \"x\" has 3 rows"));
    let alone = open(&files.put("a.npy", &ramp(&[3, 7])), &[spec("x", DType::Float, &[-1, 5])]);
    assert!(message(alone).contains("the input has shape [n, 5], the array has shape [3, 7]"));
    let labels = files.open_npz(&[("x", ramp(&[4, 5])), ("labels", ramp(&[3]))], &[spec("x", DType::Float, &[-1, 5])]);
    assert!(message(labels).contains("array \"labels\" has 3 labels for 4 samples"));
}
