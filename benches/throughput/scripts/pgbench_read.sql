\set number random(0, :users - 1)
SELECT CASE WHEN latest <= clock_timestamp() THEN balance END FROM balance WHERE user_id = 'u' || :number;
