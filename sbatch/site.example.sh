# cp sbatch/site.example.sh sbatch/site.sh and fill it in: every job reads it before it starts.
# A flag after the name of the batch file comes before what stands here.
CHECKPOINT=weights/LongCat-Video
VIDEOS=data/panda70m/manifest.csv
PREDICTOR=weights/vjepa2-ac       # of vjepa_tta.py
CLIPS=data/droid_features          # what prepare.features wrote
OUT=results            # each command gets a folder of its own in it, named by its flags
. .venv/bin/activate   # or: module load python; conda activate adasteer
