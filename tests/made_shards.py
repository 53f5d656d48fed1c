"""Made-up studies as shards, which several tests read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hf_medvlm.data.load import Splits


def as_shards(splits: Splits, folder: Path) -> dict[str, str]:
    """The first eight training studies, and three test studies, as a tar each and as Parquet files."""
    (folder / "tar").mkdir(parents=True)
    for split, studies in (("train", splits.train[:8]), ("test", splits.test[:3])):
        rows = []
        with tarfile.open(folder / "tar" / f"{split}.tar", "w") as tar:
            for study in studies:
                pictures = [(splits.image_folder / image.path).read_bytes() for image in study.images]
                files = {f"{study.study_id}.json": json.dumps(study.to_dict()).encode()}
                files |= {f"{study.study_id}.{number}.png": content for number, content in enumerate(pictures)}
                for name, content in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                names = ("study_id", "patient_id", "split", "findings", "impression", "labels")
                rows.append({name: study.to_dict()[name] for name in names} | {"image": pictures})
                rows[-1]["labels"] = json.dumps(rows[-1]["labels"])
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet", row_group_size=3)
    return {"tar": str(folder / "tar" / "*.tar"), "parquet": str(folder / "*.parquet")}
